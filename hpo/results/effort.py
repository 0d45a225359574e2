"""Effort of a study: its runs, member-epochs, run time, machines and versions, from trials and work records.

Studies of earlier versions have no work records: their working time, machines and versions are unknown.
"""

from __future__ import annotations

from dataclasses import dataclass

from optuna.trial import FrozenTrial

from hpo.results.study_facts import states_line
from hpo.search.study_records import CURVE, epochs_trained
from hpo.storage import Storage, StudySummary, TrialFields
from hpo.storage.work_records import work_records
from hpo.text import duration

UNKNOWN = "not recorded"
GIB = 2**30


@dataclass(frozen=True)
class Effort:
    """The effort of a study.

    `epochs` are the epochs of all trials and folds together, None for an objective function. `elapsed_s` is the time
    from the start of the first trial to the end of the last one, pauses included; `worked_s` is the time in which
    processes trained, all of them together, None where it is not recorded.
    """

    study: str
    trials: str
    epochs: int | None
    elapsed_s: float | None
    worked_s: float | None
    processes: int
    machines: tuple[str, ...]
    versions: tuple[str, ...]

    def cells(self) -> tuple[str, ...]:
        """Return the cells of EFFORT_HEADING."""
        worked = UNKNOWN if self.worked_s is None else f"{duration(self.worked_s)} in {self.processes} process"
        return (
            self.study,
            self.trials,
            "-" if self.epochs is None else f"{self.epochs:,}",
            "-" if self.elapsed_s is None else duration(self.elapsed_s),
            worked + ("es" if self.worked_s is not None and self.processes != 1 else ""),
        )


EFFORT_HEADING = ("study", "runs", "member-epochs", "first to last run", "training time")


def effort_of(storage: Storage, study: StudySummary, folds: int | None) -> Effort:
    """Return the effort of a study; `folds` is None for an objective function."""
    fields = TrialFields(user_attrs=False, system_attrs=CURVE, curves=False)
    ended = [trial for trial in storage.read_trials(study.study_id, -1, (), fields) if trial.state.is_finished()]
    records = work_records(study.user_attrs)
    machines = {each["machine"]["id"] + each["machine"]["device"]: _machine_text(each["machine"]) for each in records}
    programs = [", ".join(f"{name} {version}" for name, version in each["versions"].items()) for each in records]
    return Effort(
        study.name,
        states_line(study.states, study.frozen),
        None if folds is None else sum(map(epochs_trained, ended)) * folds,
        _elapsed(ended),
        sum(each["seconds"] for each in records) if records else None,
        len(records),
        tuple(machines.values()),
        tuple(dict.fromkeys(programs)),
    )


def _elapsed(ended: list[FrozenTrial]) -> float | None:
    starts = [trial.datetime_start for trial in ended if trial.datetime_start is not None]
    ends = [trial.datetime_complete for trial in ended if trial.datetime_complete is not None]
    return max(0.0, (max(ends) - min(starts)).total_seconds()) if starts and ends else None


def _machine_text(machine: dict[str, object]) -> str:
    """Return `AMD EPYC, 2 cores, 47 GiB of memory, Linux, trained on cpu`."""
    memory = machine["memory_bytes"]
    assert isinstance(memory, int)
    return (
        f"{machine['processor']}, {machine['cores']} cores, {memory / GIB:.0f} GiB of memory, {machine['system']}, "
        f"trained on {machine['device']}"
    )
