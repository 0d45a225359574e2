"""Study files: reading, checking and writing; every error names the file, the key and what is allowed.

    trees.py       paths into trees of tables and lists
    values.py      types of values, and marks on fields
    metrics.py     metrics: tasks and directions
    data_settings.py, task_settings.py
                   the models of [data], [preprocess] and [task]
    models.py      settings with concrete values: types, limits, defaults
    keys.py        names, sections, searchable and unused keys, read from the models
    messages.py    error messages
    conditions.py  conditional parameters
    searched.py    ranges and choices
    study.py       a checked study: settings by trial, resolved file, differences
    objective.py   a study with an objective function
    checking.py    check a tree; return a study or raise its first error
    reading.py     read a file, with the changes of a command
    writing.py     write a study as TOML

A study file fixes each value or gives a range or choices to search. This room imports neither torch, Optuna nor NumPy.
"""

from hpo.studyfile.checks.checking import AnyStudy, name_problem, parse_any_study, parse_study
from hpo.studyfile.data_settings import DataSettings, PreprocessSettings, user_data
from hpo.studyfile.models import Config, NetworkSettings, OptimizerSettings, SearchSettings, TrainingSettings
from hpo.studyfile.objective import ObjectiveStudy
from hpo.studyfile.reading import read_study
from hpo.studyfile.searched import Choices, Parameter, Range
from hpo.studyfile.study import Study, differing_keys
from hpo.studyfile.task_settings import TaskSettings

__all__ = [
    "AnyStudy",
    "Choices",
    "Config",
    "DataSettings",
    "NetworkSettings",
    "ObjectiveStudy",
    "OptimizerSettings",
    "Parameter",
    "PreprocessSettings",
    "Range",
    "SearchSettings",
    "Study",
    "TaskSettings",
    "TrainingSettings",
    "differing_keys",
    "name_problem",
    "parse_any_study",
    "parse_study",
    "read_study",
    "user_data",
]
