"""Plan a study on this machine: code, device, data, network size and population, with every error found early.

Every error of the study file, the data, the code or the device is found here, before anything is stored; a launch and
`hpo check` begin with a plan. A stored study is planned with the data and code that it was created with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import optuna
import torch

from hpo.data import Split, load_split, load_splits
from hpo.errors import CodeError, HpoError, SettingError
from hpo.search.points import trial_seed, trial_split
from hpo.search.sampling.pruners import choose_pruner
from hpo.search.sampling.samplers import DO_NOT_LEARN, PRECISION, check_search
from hpo.search.space import Values, config_of
from hpo.search.study_records import CODE, check_code, check_data, user_attrs_of
from hpo.studyfile import AnyStudy, Config, ObjectiveStudy, Study
from hpo.studyfile.messages import dotted_key
from hpo.training.device_data import (
    DeviceSplit,
    IndexedShape,
    IntegerShape,
    describe,
    example_shape,
    split_shape,
    to_device,
)
from hpo.training.devices import describe_device, find_device, is_out_of_memory
from hpo.training.grouping import PROOF_EXAMPLES, two_networks, why_not_stackable
from hpo.training.networks.builtin import build
from hpo.training.networks.user_defined import Mode, check_ids, check_reproducible, check_trainable
from hpo.training.size import MemberSize, device_memory, member_size, population_size
from hpo.training.stack import DTYPES, EVALUATION_BATCH, Member
from hpo.training.tasks.task import Task, check_task, make_task, output_count, output_noun
from hpo.training.tasks.trivial import TrivialScores, trivial_baseline
from hpo.usercode import (
    UserCode,
    describe_missing,
    import_code,
    load_reference,
    missing_files,
    one_line_error,
    referenced_files,
)


@dataclass(frozen=True)
class NetworkPlan:
    """The plan of a network study.

    `config` has every searched value at its first, `size` is that of one member of it. `stacked` says whether members
    train in a stack: a user-defined network may not be stackable. `code` has no files where the network is built in.
    `other_splits` are the further ones of `data.splits`.
    """

    device: torch.device
    split: Split
    config: Config
    size: MemberSize
    population: int
    stacked: bool
    code: UserCode
    other_splits: tuple[Split, ...] = ()

    @property
    def splits(self) -> tuple[Split, ...]:
        """Return all splits; without `data.splits`, one."""
        return (self.split, *self.other_splits)


@dataclass(frozen=True)
class ObjectivePlan:
    """The plan of an objective study: the user's function of a trial, and its code."""

    function: Callable[[optuna.Trial], Any]
    code: UserCode


AnyPlan = NetworkPlan | ObjectivePlan


@overload
def plan(study: Study, device: str) -> NetworkPlan: ...
@overload
def plan(study: ObjectiveStudy, device: str) -> ObjectivePlan: ...
def plan(study: AnyStudy, device: str) -> AnyPlan:
    """Return the plan of a study. Raises UsageError or StudyFileError (the file, the device), DataError and CodeError.

    An objective function chooses its device itself, whatever `device` says.
    """
    return _plan_objective(study) if isinstance(study, ObjectiveStudy) else _plan_networks(study, device)


@overload
def plan_stored(study: Study, stored: optuna.Study, device: str, *, changed_code: bool = False) -> NetworkPlan: ...
@overload
def plan_stored(
    study: ObjectiveStudy, stored: optuna.Study, device: str, *, changed_code: bool = False
) -> ObjectivePlan: ...
@overload
def plan_stored(study: AnyStudy, stored: optuna.Study, device: str, *, changed_code: bool = False) -> AnyPlan: ...
def plan_stored(study: AnyStudy, stored: optuna.Study, device: str, *, changed_code: bool = False) -> AnyPlan:
    """Return the plan of the stored study, or of a study made from it, with the stored study's data and code.

    Raises what `plan` raises, DataError or HpoError where the data are missing or have changed, and CodeError where the
    code is missing, or has changed without `changed_code`.
    """
    if absent := missing_files(referenced_files(study.references), study.folder):
        where = describe_missing(absent[0], Path(user_attrs_of(stored).get(CODE, {"folder": study.folder})["folder"]))
        raise CodeError(
            f"study '{stored.study_name}': needs {where}; copy the file there, or work in the folder that has it"
        )
    planned: AnyPlan = plan(study, device)
    if isinstance(planned, NetworkPlan):
        check_data(study, planned.split, stored)
    if not changed_code:
        check_code(study, planned.code, stored)
    return planned


def _plan_objective(study: ObjectiveStudy) -> ObjectivePlan:
    code = import_code([study.objective], study.folder)
    function = load_reference(study.objective, study.folder)
    if isinstance(function, type):
        instance = f"objective = {function.__name__}()"
        raise study.error("objective", f"{study.objective} is a class; add a line such as `{instance}` and name that")
    if not callable(function):
        raise study.error("objective", f"must name a function of a trial (got {type(function).__name__})")
    return ObjectivePlan(function, code)


def _plan_networks(study: Study, device: str) -> NetworkPlan:
    check_search(study)
    where = find_device(device)
    precisions = study.possible_values(PRECISION)
    for place, precision in precisions.items():
        if where.type == "mps" and precision == "float64":
            raise study.error(dotted_key(place), "float64 does not exist on mps; use float32, or --device cpu")
    code = _code(study)
    _check_keep(study)
    split, *others = load_splits(study)
    _check_augmentation(study, split)
    config = study.first_config
    widest = ["float32" if each == "auto" else each for each in precisions.values()]  # "auto" may be float32
    assumed = max(widest, key=lambda each: DTYPES[each].itemsize)
    folds = [fold for each in (split, *others) for fold in each.folds]
    _check_task(study, folds)
    outputs = output_count(study.task, split)
    with _network_errors(study, config):
        modes = _modes_of_one(study, folds)
        noun = output_noun(study.task.kind, study.task.used_loss)
        stacked = config.network.kind != "module" or _stacks(config, folds, outputs, noun, where, modes)
        size = member_size(config, split_shape(split), outputs, assumed, len(split.folds))
    limit, network_is_searched = (
        study.search.limits.parameters,
        any(each.setting[0] == "network" for each in study.parameters),
    )
    if limit is not None and size.parameters > limit and not network_is_searched:
        problem = f"is below the {size.parameters:,} parameters that every network of this study has (got {limit:,})"
        raise study.error("search.limits.parameters", problem)
    if size.least_bytes > device_memory(where) and not network_is_searched:
        needs, has = (f"{count / 2**30:,.1f} GiB" for count in (size.least_bytes, device_memory(where)))
        problem = f"a network of {size.parameters:,} parameters needs at least {needs} to train, and {where} has {has}"
        raise study.error("network", problem)
    largest = 1 if study.search.population == "auto" and not stacked else study.search.population
    independent = _are_independent(study)
    population = population_size(largest, study.search.trials, size.member_bytes, where, independent)
    return NetworkPlan(where, split, config, size, population, stacked, code, tuple(others))


def _are_independent(study: Study) -> bool:
    """Return whether no trial depends on the results of others, nor the number of trials on time or results."""
    search = study.search
    ends_early = search.patience is not None or search.timeout is not None
    return search.sampler in DO_NOT_LEARN and choose_pruner(study).name == "none" and not ends_early


def member_of(study: Study, number: int, config: Config, seed: int | None = None) -> Member:
    """Return a trial as a member that has trained no epoch; `seed` is that of a trained trial."""
    used = trial_seed(study, number) if seed is None else seed
    return Member(number, config, used, split=trial_split(study, number))


def _check_keep(study: Study) -> None:
    """Raise StudyFileError for stored weights of trials that have no single set of weights, or no common split."""
    if study.first_settings.training.keep != "none":
        for key, why in (("folds", "a trial has a network for each fold"), ("splits", "trials have different splits")):
            if getattr(study.data, key) is not None:
                problem = f"must be none with data.{key}, where {why}: `hpo test` trains the best one"
                raise study.error("training.keep", problem)


def _check_task(study: Study, folds: Sequence[Split]) -> None:
    """Raise StudyFileError where the task does not match the data, or where the study's loss or metric fails."""

    def called(key: str, call: Callable[[], object]) -> object:
        try:
            return call()
        except SettingError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise SettingError(key, f"the function raised {one_line_error(error, study.folder)}") from error

    try:
        for fold in folds:
            check_task(task_of(study, fold), fold, called)
    except SettingError as error:
        raise study.error(error.key, error.problem) from error


def task_of(study: Study, images: Split) -> Task:
    """Return the task of a study for its split. Raises SettingError where they do not match."""
    return make_task(study.task, study.search.named_metrics, study.folder, images)


def baseline_scores(study: Study, splits: Sequence[Split]) -> TrivialScores:
    """Return the metrics of the trivial baseline by key of learning curves: their means over all splits and folds."""
    return trivial_baseline([fold for split in splits for fold in split.folds], lambda fold: task_of(study, fold))


def _code(study: Study) -> UserCode:
    """Import the study's code and return its files."""
    for reference, key in study.references.items():
        try:
            import_code([reference], study.folder)
        except CodeError as error:
            raise study.error(key, str(error)) from error
    return import_code(study.references, study.folder)


@contextmanager
def _network_errors(study: Study, config: Config) -> Iterator[None]:
    """Turn an exception of a network into an error of the study file."""
    try:
        yield
    except SettingError as error:
        raise study.error(error.key, error.problem) from error
    except HpoError:
        raise
    except Exception as error:
        if config.network.kind != "module" or is_out_of_memory(error):
            raise
        problem = f"{config.network.module} raised {one_line_error(error, study.folder)}"
        raise study.error("network.module", problem) from error


def _stacks(
    config: Config, folds: Sequence[Split], outputs: int, noun: str, device: torch.device, modes_of_one: Sequence[Mode]
) -> bool:
    """Try a user-defined network on a few examples, and on one example in these modes; return whether it can stack."""
    few = torch.from_numpy(folds[0].train.inputs[:PROOF_EXAMPLES])
    kind = torch.float64 if config.training.precision == "float64" else torch.float32
    shape = example_shape(few)
    network = build(config.network, shape, outputs, 0)
    modules = two_networks(config.network, shape, outputs, 0)
    check_reproducible(network, modules[0], config.network)
    if isinstance(shape, IntegerShape):
        for examples in (each for fold in folds for each in (fold.train, fold.validation)):
            extra = build(config.network, shape, outputs, 0)
            check_ids(extra, config.network, torch.from_numpy(examples.inputs))
    check_trainable(network, config.network, few.to(device), outputs, compute=kind, noun=noun)
    check_trainable(network, config.network, few[:1].to(device), outputs, modes_of_one, kind, noun)
    return why_not_stackable(modules, few) is None


def _modes_of_one(study: Study, folds: Sequence[Split]) -> list[Mode]:
    """Return the modes in which networks may get a batch of one example."""
    found: list[Mode] = []
    if 1 in study.possible_values(("training", "batch_size")).values():
        found.append("training")
    if any(
        size % EVALUATION_BATCH == 1 for size in (*(len(fold.validation) for fold in folds), folds[0].test_size or 0)
    ):
        found.append("evaluation")
    return found


def can_train(study: Study, values: Values) -> bool:
    """Return whether a trial with these stored values could be trained on the study's data, within its limits.

    Builds the trial's network and runs it on one example.
    """
    config, limit = config_of(study, values), study.search.limits.parameters
    try:
        split = load_split(study)
        _check_augmentation(study, split)
        with _network_errors(study, config):
            outputs = output_count(study.task, split)
            size = member_size(config, split_shape(split), outputs, "float32")
    except HpoError:
        return False
    return limit is None or size.parameters <= limit


def _check_augmentation(study: Study, split: Split) -> None:
    """Raise StudyFileError for the augmentation of examples that cannot have it, or over an image's whole side."""
    shape = split_shape(split)
    if isinstance(shape, IntegerShape | IndexedShape):
        for place, alpha in study.possible_values(("training", "mixup")).items():
            if alpha:
                kind = "integers" if isinstance(shape, IntegerShape) else "rows with categories in embeddings"
                problem = f"cannot mix the examples of {split.dataset}, which are {kind} (got {alpha:g}); remove it"
                raise study.error(dotted_key(place), problem)
    if len(shape) != 3 or isinstance(shape, IntegerShape):
        for key in ("flip", "shift", "cutout"):
            for place, value in study.possible_values(("training", key)).items():
                if value:
                    problem = f"needs images, but the examples of {split.dataset} are {describe(shape)} (got {value:g})"
                    raise study.error(dotted_key(place), f"{problem}; remove it")
        return
    side = min(shape[1:])
    for key in ("shift", "cutout"):
        for place, pixels in study.possible_values(("training", key)).items():
            if pixels >= side:
                problem = f"must be below {side}, the pixels of an image's shorter side (got {pixels})"
                raise study.error(dotted_key(place), problem)


def to_planned_device(study: Study, planned: NetworkPlan) -> list[DeviceSplit]:
    """Copy the plan's splits to its device. Raises HpoError where they do not fit."""
    try:
        return [
            to_device(split, split.data.split_seed, planned.device, [task_of(study, fold) for fold in split.folds])
            for split in planned.splits
        ]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        where = describe_device(planned.device)
        raise HpoError(f"study '{study.name}': its data do not fit into the memory of {where}") from error
