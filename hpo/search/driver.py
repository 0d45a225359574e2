"""Two implementations of submit, launch and join: one for network studies, one for objective studies.

A driver is made of a study and its plan on this machine, so that every error of file, code, data and device is found
before anything is stored.
"""

from __future__ import annotations

import functools
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.data import Split
from hpo.search.checkpoints.training_checkpoints import TrainingCheckpoints
from hpo.search.enqueueing import (
    ENQUEUED,
    TrialMaker,
    network_trials,
    network_values,
    objective_trials,
    objective_values,
)
from hpo.search.epoch_extension import EpochExtension, epoch_extension
from hpo.search.events import Event, Note, StudyStarted
from hpo.search.loop import Search
from hpo.search.objective.objective_search import ObjectiveSearch
from hpo.search.plan import AnyPlan, NetworkPlan, ObjectivePlan, baseline_scores, plan, plan_stored, to_planned_device
from hpo.search.points import FIXED
from hpo.search.populations.halving_search import HalvingSearch
from hpo.search.populations.population_search import PopulationSearch
from hpo.search.sampling.pruners import choose_pruner, halving_lines, halving_of, max_epochs
from hpo.search.sampling.warm_start import accept_other_code, check_start, warm_start
from hpo.search.space import Values
from hpo.search.study_records import (
    PRUNER,
    RUN,
    agree_on_pruner,
    agree_on_run,
    claim_conditions,
    precisions,
    update_data_record,
    user_attrs_of,
)
from hpo.storage import Storage, StudySummary, check_open, summary
from hpo.studyfile import AnyStudy, ObjectiveStudy, Study
from hpo.training.compiled.passes import load_passes
from hpo.training.device_data import DeviceSplit, steps_per_epoch
from hpo.training.devices import describe_device, has_bfloat16
from hpo.training.speed.choices import choose_precision, measured_members, pays
from hpo.training.stack import DTYPES, Member
from hpo.training.trainer import Trainer
from hpo.usercode import UserCode

Listener = Callable[[Event], None]


@dataclass(frozen=True)
class Driver(ABC):
    """One study on this machine. The methods here are those of a study about which hpo knows nothing more."""

    study: AnyStudy
    plan: AnyPlan
    enqueued_key = FIXED
    """The system attribute of a trial with the values that a user enqueued."""

    @property
    def code(self) -> UserCode:
        """The user code of the study."""
        return self.plan.code

    @property
    def split(self) -> Split | None:
        """The data of a network study."""
        return None

    @property
    def warning(self) -> str:
        """A line on what the data lack, or ""."""
        return ""

    @property
    def epochs(self) -> int | None:
        """The epochs of every trial; None where trials differ, or hpo does not know them."""
        return None

    @property
    def repeats_configurations(self) -> bool:
        """Whether two trials may have the same parameters."""
        return False

    def precisions(self, chosen: str) -> str:
        """Return the precisions of the trials in words; `chosen` is the one that "auto" stands for."""
        return ""

    def check_new(self, storage: Storage, changed_code: bool) -> None:  # noqa: B027 - nothing to check
        """Raise StudyFileError for a new study that the storage rules out."""

    def epoch_extension(self, stored: optuna.Study, storage: Storage) -> EpochExtension:
        """Return the completed trials of the stored study that continue, where this one has more epochs."""
        return EpochExtension()

    def update_stored(  # noqa: B027 - nothing to update
        self, stored: optuna.Study, storage: Storage, changed_code: bool
    ) -> None:
        """Update what is stored of this machine's data and code."""

    @abstractmethod
    def enqueued_values(self, texts: Sequence[str], storage: Storage) -> list[Values]:
        """Parse enqueued trials, each as JSON. Raises UsageError for values outside the search space."""

    @abstractmethod
    def trial_maker(self, stored: optuna.Study, storage: Storage) -> TrialMaker:
        """Return a function that makes waiting trials of enqueued values, to follow the stored trials."""

    def started(self, before: StudySummary, device: str, precision: str) -> StudyStarted:
        """Return the event of the start of a launch; `before` is the stored study at that moment."""
        return StudyStarted(
            self.study.name,
            self.study.search.trials,
            *trial_counts(before),
            device=device,
            precision=precision,
            best=before.best,
            minimized=self.study.search.minimized,
            **self._sizes(before),
        )

    def search(
        self,
        stored: optuna.Study,
        storage: Storage,
        on_event: Listener,
        stop: threading.Event,
        recent_errors: list[str],
    ) -> Search:
        """Return this process's search of the stored study, after the event that it starts.

        The search appends the errors of its populations to `recent_errors`. Workers agree here on the study's precision
        and start time. Raises StudyClosedError unless the study is open.
        """
        conditions = claim_conditions(self.study, stored)
        check_open(storage, conditions)
        arguments = {"study": self.study, "code": self.code, "claim_conditions": conditions, "stop": stop}
        return self._search(stored, storage, on_event, recent_errors=recent_errors, **arguments)

    @abstractmethod
    def _sizes(self, before: StudySummary) -> dict[str, Any]:
        """Return the fields of StudyStarted that differ by kind of study; `before` is the stored study."""

    @abstractmethod
    def _search(self, stored: optuna.Study, storage: Storage, on_event: Listener, **arguments: Any) -> Search:
        """Agree with other workers on how to run the study, report its start, and return the search."""


@dataclass(frozen=True)
class NetworkDriver(Driver):
    """A study that trains networks."""

    study: Study
    plan: NetworkPlan
    enqueued_key = ENQUEUED

    @property
    def split(self) -> Split:
        return self.plan.split

    @property
    def warning(self) -> str:
        return self.plan.split.warning

    @property
    def epochs(self) -> int | None:
        epochs = set(self.study.possible_values(("training", "epochs")).values())
        return epochs.pop() if len(epochs) == 1 else None

    @property
    def repeats_configurations(self) -> bool:
        return self.study.search.repeat

    def precisions(self, chosen: str) -> str:
        return precisions(self.study, chosen)

    def check_new(self, storage: Storage, changed_code: bool) -> None:
        """Raise StudyFileError for a new study whose `search.start_from` names a study that is not comparable."""
        check_start(self.study, self.split, self.code, storage, changed_code)

    def epoch_extension(self, stored: optuna.Study, storage: Storage) -> EpochExtension:
        """Return the completed trials of the stored study that continue, where this one has more epochs."""
        return epoch_extension(self.study, stored, storage, self.plan.splits, self.code)

    def update_stored(self, stored: optuna.Study, storage: Storage, changed_code: bool) -> None:
        """Store folder of the data, trivial baseline, and that changed code of `search.start_from` is accepted."""
        trivial = baseline_scores(self.study, self.plan.splits)
        update_data_record(stored, self.split, trivial, storage)
        if changed_code:
            accept_other_code(self.study, stored, storage)

    def enqueued_values(self, texts: Sequence[str], storage: Storage) -> list[Values]:
        """Parse enqueued trials, each as JSON. Raises UsageError for values outside the search space."""
        return network_values(self.study, texts, storage)

    def trial_maker(self, stored: optuna.Study, storage: Storage) -> TrialMaker:
        """Return a function that samples the parameters that enqueued values leave open."""
        before = warm_start(self.study, user_attrs_of(stored), storage).trials
        return lambda given, trials: network_trials(self.study, given, trials, before)

    def _sizes(self, before: StudySummary) -> dict[str, Any]:
        is_halving = choose_pruner(self.study, before.user_attrs.get(PRUNER)).name == "halving"
        epochs = halving_of(self.study).expected_epochs(max_epochs(self.study)) if is_halving else None
        return {
            "population": self.plan.population,
            "parameters": self.plan.size.parameters,
            "images": len(self.split.train),
            "expected_epochs": epochs,
        }

    def _search(self, stored: optuna.Study, storage: Storage, on_event: Listener, **arguments: Any) -> Search:
        device, before = describe_device(self.plan.device), summary(storage, stored._study_id)
        split, *others = to_planned_device(self.study, self.plan)
        storage.set_device(device)
        precision, began = agree_on_run(stored, storage, device, self._precision(stored, split, on_event))
        choice = choose_pruner(self.study, user_attrs_of(stored).get(PRUNER))
        if choice.why and (agreed := agree_on_pruner(stored, storage, choice.name)) != choice.name:
            choice = choose_pruner(self.study, agreed)
        on_event(self.started(before, device, self.precisions(precision)))
        if choice.why:
            on_event(Note(f"pruner: {choice.name} ({choice.why})"))
        for line in halving_lines(self.study, choice.name):
            on_event(Note(line))
        if split.device.type == "cpu" and (missing := load_passes(DTYPES[precision])):
            on_event(Note(f"layers: computed by torch alone ({missing}); with a C compiler, training takes less time"))
        timeout_s = self.study.search.trial_timeout
        checkpoints = TrainingCheckpoints(
            self.study,
            arguments["claim_conditions"],
            storage,
            on_event,
            code=self.code,
            splits=self.plan.splits,
            precision=precision,
        )
        search = (
            functools.partial(HalvingSearch, halving=halving_of(self.study))
            if choice.name == "halving"
            else PopulationSearch
        )
        return search(
            stored=stored,
            storage=storage,
            on_event=on_event,
            began=began,
            population=self.plan.population,
            trainer=Trainer(
                split,
                precision,
                lambda text: on_event(Note(text, "warning")),
                timeout_s,
                others,
                apart="seconds_per_epoch" in self.study.search.metrics,
                note=lambda text: on_event(Note(text)),
            ),
            checkpoints=checkpoints,
            before=self._warm_start(stored, storage, on_event),
            **arguments,
        )

    def _warm_start(self, stored: optuna.Study, storage: Storage, on_event: Listener) -> list[FrozenTrial]:
        """Return the trials of `search.start_from`, after a warning for each study that cannot be used any more."""
        if not self.study.search.start_from:
            return []
        found = warm_start(self.study, user_attrs_of(stored), storage)
        for problem in found.problems:
            on_event(Note(f"search.start_from: {problem}; the search continues without its trials", "warning"))
        return found.trials

    def _precision(self, stored: optuna.Study, split: DeviceSplit, on_event: Listener) -> str:
        """Return the precision of "auto": the stored one, else the faster one on this machine."""
        if self.study.first_settings.training.precision != "auto":
            return self.study.first_settings.training.precision
        if run := user_attrs_of(stored).get(RUN):
            return str(run["precision"])
        if split.device.type == "mps" or not self.plan.stacked:
            return "float32"
        if split.device.type == "cpu" and not has_bfloat16(split.device):
            on_event(Note("precision: float32 (this CPU has no bfloat16 instructions)"))
            return "float32"
        training, count = self.plan.config.training, measured_members(self.plan.population, split.device)
        steps = self.study.search.trials * training.epochs * steps_per_epoch(len(split.train), training.batch_size)
        if not pays(count, steps):
            on_event(Note("precision: float32 (the training is shorter than a measurement of bfloat16)"))
            return "float32"
        precision, ratio = choose_precision([Member(n, self.plan.config, n) for n in range(count)], split)
        on_event(Note(f"precision: {precision} (bfloat16 trains {ratio:.2f} times as fast as float32 here)"))
        return precision


@dataclass(frozen=True)
class ObjectiveDriver(Driver):
    """A study of an objective function, which chooses its device and precision itself."""

    study: ObjectiveStudy
    plan: ObjectivePlan

    def enqueued_values(self, texts: Sequence[str], storage: Storage) -> list[Values]:
        """Parse enqueued trials, each as JSON. Raises UsageError for text that is no JSON object."""
        return objective_values(self.study, texts, storage)

    def trial_maker(self, stored: optuna.Study, storage: Storage) -> TrialMaker:
        """Return a function that makes trials whose `suggest` calls return the enqueued values."""
        return lambda given, trials: objective_trials(self.study, given, trials)

    def _sizes(self, before: StudySummary) -> dict[str, Any]:
        return {"population": 1, "parameters": 0, "images": 0, "objective": self.study.objective}

    def _search(self, stored: optuna.Study, storage: Storage, on_event: Listener, **arguments: Any) -> Search:
        storage.set_device("")
        _, began = agree_on_run(stored, storage)
        on_event(self.started(summary(storage, stored._study_id), "", ""))
        return ObjectiveSearch(
            stored=stored,
            storage=storage,
            on_event=on_event,
            began=began,
            population=1,
            function=self.plan.function,
            **arguments,
        )


def driver_of(study: AnyStudy, device: str) -> Driver:
    """Return the driver of a study file. Raises what `plan` raises."""
    return _driver(study, plan(study, device))


def driver_of_stored(study: AnyStudy, stored: optuna.Study, device: str, *, changed_code: bool = False) -> Driver:
    """Return the driver of a stored study, or of one made from it. Raises what `plan_stored` raises."""
    return _driver(study, plan_stored(study, stored, device, changed_code=changed_code))


def _driver(study: AnyStudy, planned: Any) -> Driver:
    return ObjectiveDriver(study, planned) if isinstance(study, ObjectiveStudy) else NetworkDriver(study, planned)


def trial_counts(study: StudySummary) -> tuple[int, int, int]:
    """Return the numbers of completed, pruned and failed trials."""
    states = study.states
    return states.get(TrialState.COMPLETE, 0), states.get(TrialState.PRUNED, 0), states.get(TrialState.FAIL, 0)
