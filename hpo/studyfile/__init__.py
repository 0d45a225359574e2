"""What a study file may say; every error names the file, the key and what is allowed.

    trees.py      paths into trees of tables and lists
    cases.py      what holds only where a searched key has a certain value
    models.py     the concrete settings of a trial and of a study: types, limits, defaults
    messages.py   the sentences of errors
    searched.py   ranges and choices in the place of values
    study.py      the checked study: settings by trial, the resolved tree, differences
    objective.py  a study of the user's own objective
    checking.py   a tree in, a study or its first error out
    reading.py    a file in, with what the command changes
    writing.py    a study as the text of a file

A study file fixes every value or gives a range or choices to search. This room knows of the rest only the errors, and
imports neither torch, Optuna nor NumPy.
"""

from hpo.studyfile.cases import Case, Condition
from hpo.studyfile.checking import AnyStudy, name_problem, parse_any_study, parse_study
from hpo.studyfile.models import (
    Config,
    DataSettings,
    NetworkSettings,
    OptimizerSettings,
    SearchSettings,
    TrainingSettings,
    own_data,
)
from hpo.studyfile.objective import ObjectiveStudy
from hpo.studyfile.reading import read_study
from hpo.studyfile.searched import Choices, Parameter, Range
from hpo.studyfile.study import Study, differing_keys

__all__ = [
    "AnyStudy",
    "Case",
    "Choices",
    "Condition",
    "Config",
    "DataSettings",
    "NetworkSettings",
    "ObjectiveStudy",
    "OptimizerSettings",
    "Parameter",
    "Range",
    "SearchSettings",
    "Study",
    "TrainingSettings",
    "differing_keys",
    "name_problem",
    "own_data",
    "parse_any_study",
    "parse_study",
    "read_study",
]
