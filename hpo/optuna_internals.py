"""Private names of Optuna that hpo uses, all imported here: a new Optuna release is adapted to in this one module.

hpo writes Optuna's tables in transactions of its own, and samples faster than Optuna where the history is long; Optuna
offers no public names for either. tests/test_optuna_internals.py checks each name, and each private attribute and
method that hpo's subclasses of Optuna's classes rely on.
"""

from __future__ import annotations

from optuna.samplers._tpe.probability_distributions import (
    _BatchedCategoricalDistributions as BatchedCategoricalDistributions,
)
from optuna.samplers._tpe.probability_distributions import (
    _MixtureOfProductDistribution as MixtureOfProductDistribution,
)
from optuna.samplers._tpe.sampler import _split_trials as split_trials
from optuna.samplers._tpe.sampler import default_gamma, default_gamma_multiobjective
from optuna.storages._rdb import models
from optuna.study._frozen import FrozenStudy
from optuna.study._multi_objective import _fast_non_domination_rank as non_domination_rank
from optuna.study._multi_objective import _is_pareto_front as is_pareto_front
from optuna.study._tell import _tell_with_warning as tell_with_warning

__all__ = [
    "BatchedCategoricalDistributions",
    "FrozenStudy",
    "MixtureOfProductDistribution",
    "default_gamma",
    "default_gamma_multiobjective",
    "is_pareto_front",
    "models",
    "non_domination_rank",
    "split_trials",
    "tell_with_warning",
]
