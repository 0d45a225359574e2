"""Chaos test: processes are killed and suspended, servers restarted; the study ends with exactly its trials.

With the random sampler, the number of a trial and the study's seed determine its configuration. So the results are
compared, trial by trial, with those of a search without disturbance and without pruner: a pruned trial has the
beginning of its learning curve. `make chaos` runs it. The plan is drawn from
pytest-randomly's seed: `--randomly-seed=N` draws it again.
"""

from __future__ import annotations

import json
import math
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from chaos import Chaos, Size
from optuna.trial import FrozenTrial, TrialState
from optuna_records import plain

from hpo.storage import Storage, deaths_without_progress, load_study, open_storage

EPOCHS = 3
HALVING = 'pruner = "halving", rung = 1, factor = 2'
RUNGS = (1, 2)
STUDY = f"""
name = "chaos"
data = {{ dataset = "digits", train_size = 400 }}
network = {{ kind = "mlp", hidden = [16], dropout = {{ low = 0.0, high = 0.4 }} }}
optimizer = {{ kind = "sgd", lr = {{ low = 1e-3, high = 0.3, log = true }} }}
training = {{ epochs = {EPOCHS}, batch_size = 20, precision = "float64", checkpoint = 1 }}
search = {{ sampler = "random", population = 4, %s }}
"""
SIZES = {
    "none": Size(processes=8, trials=600, epochs=450, last_epoch=EPOCHS, kills=50, stops=10, restarts=5),
    "halving": Size(processes=8, trials=600, epochs=260, last_epoch=EPOCHS, kills=50, stops=10, restarts=5),
}
MAX_DEATHS = 3
TOLERANCE = 1e-6  # of learning curves: a trial hardly depends on its population
# The lines allowed on stderr.
LINES = re.compile(
    r"postgresql://hpo@\S+ .+; trying again for up to 120 s"
    r"|the storage answers again, after \d+ s"
    r"|hpo: postgresql://hpo@\S+ .+"
    r"|chaos: finished, \d+ completed, \d+ pruned, \d+ failed in .+ s"
    r"|Best-\d \(trial \d+\) \| val acc: .+|warning: the best .+|(next:)? +hpo (confirm|export|dashboard) .+"
)
NO_HEARTBEAT = re.compile(r"no heartbeat from (process (\d+) on \S+) for 60 s")
ENDED = re.compile(r"(process (\d+) on \S+) ended")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[FrozenTrial]]:
    """Return the trials of a study of this size that one process searched."""

    @cache
    def trials(count: int) -> list[FrozenTrial]:
        size = replace(SIZES["none"], processes=1, trials=count, kills=0, stops=0, restarts=0)
        file = study_file(tmp_path_factory.mktemp("undisturbed"), "none")
        url = f"sqlite:///{file.with_suffix('.db')}"
        Chaos(size, 0, file, url).run()
        with closing(open_storage(url)) as storage:
            return load_study(storage, "chaos").trials

    return trials


def study_file(folder: Path, pruner: str) -> Path:
    file = folder / "chaos.toml"
    file.write_text(STUDY % (HALVING if pruner == "halving" else 'pruner = "none"'))
    return file


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["none", "halving"])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_chaos_loses_and_duplicates_nothing(
    kind: str,
    pruner: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    undisturbed: Callable[[int], list[FrozenTrial]],
    pytestconfig: pytest.Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HPO_ARTIFACTS", str(tmp_path / "artifacts"))
    seed: int = pytestconfig.getoption("randomly_seed", default=0)
    print(f"\n--randomly-seed={seed} draws this plan again")
    size = SIZES[pruner] if kind == "postgresql" else replace(SIZES[pruner], restarts=0)
    url: str = request.getfixturevalue("new_file_url" if kind == "sqlite" else "new_server_url")
    server = request.getfixturevalue("server") if size.restarts else None
    chaos = Chaos(size, seed, study_file(tmp_path, pruner), url, server)
    chaos.run()
    with closing(open_storage(url)) as storage:
        trials = load_study(storage, "chaos").trials
        print(summary(chaos, storage.engine.name, trials))
        check_processes(chaos)
        check_counts(storage, trials, size)
        assert pruner == "halving" or TrialState.PRUNED not in {trial.state for trial in trials}
        check_ended(chaos, trials)
        check_attempts(chaos, trials)
        check_results(trials, undisturbed(size.trials))
        check_readable(storage, trials)
        assert os.listdir(tmp_path / "artifacts") == []


def summary(chaos: Chaos, database: str, trials: Sequence[FrozenTrial]) -> str:
    away = [each for each in chaos.processes if each.status == 1]
    ends = [attempt["reason"] for trial in trials for attempt in attempts(trial)]
    numbers = {
        "trials": len(trials),
        "processes at a time": chaos.size.processes,
        "processes in all": len(chaos.processes),
        "killed": chaos.kills,
        "of these while they started": sum(each.killed and each.starts for each in chaos.processes),
        "suspended": chaos.suspensions,
        "restarts of the server": len(chaos.downs),
        "starts that found no server": len(away),
        "epochs of populations": chaos.epochs,
        "pruned trials": sum(trial.state == TrialState.PRUNED for trial in trials),
        "trials with attempts that ended": sum(bool(attempts(trial)) for trial in trials),
        "attempts that died": sum(ENDED.fullmatch(reason) is not None for reason in ends),
        "attempts given away": sum(NO_HEARTBEAT.fullmatch(reason) is not None for reason in ends),
        "trials failed by deaths": sum(trial.state == TrialState.FAIL for trial in trials),
        "ended, but killed before it was printed": len(trials) - sum(len(each.ended) for each in chaos.processes),
    }
    counts = ", ".join(f"{name} {number}" for name, number in numbers.items())
    return f"chaos on {database}: {chaos.seconds:.1f} s, {counts}"


def attempts(trial: FrozenTrial) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = trial.system_attrs.get("hpo:attempts", [])
    return found


def check_processes(chaos: Chaos) -> None:
    """Check that each process not killed reached the study's end, or lost its server, without a traceback."""
    for process in chaos.processes:
        assert [line for line in process.errors if not LINES.fullmatch(line)] == []
        completed = sum(event["completed"] for event in process.events if event["event"] == "population_ended")
        if process.killed:
            assert completed <= len(process.completed)
        elif not chaos.found_no_server(process):
            assert process.status == 0
            assert completed == len(process.completed)
            last = process.events[-1]
            assert (last["event"], last["reason"]) == ("study_ended", "finished")
            assert last["completed"] + last["pruned"] + last["failed"] == chaos.size.trials
            # Some of these lines appear only once.
            assert any(line.startswith("chaos: finished") for line in process.errors)


def check_counts(storage: Storage, trials: Sequence[FrozenTrial], size: Size) -> None:
    assert [trial.number for trial in trials] == list(range(size.trials))
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    assert len({json.dumps(trial.params, sort_keys=True) for trial in trials}) == size.trials
    with storage.engine.connect() as connection:
        for table, count in (("trials", size.trials), ("studies", 1), ("trial_heartbeats", 0)):
            assert connection.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar_one() == count


def check_ended(chaos: Chaos, trials: Sequence[FrozenTrial]) -> None:
    """Check that printed trials were ended by their process, and other ones by a process that was then killed."""
    printed = {number: process for process in chaos.processes for number in process.ended}
    assert Counter(number for process in chaos.processes for number in process.ended) == Counter(list(printed))
    killed = {process.pid for process in chaos.processes if process.killed}
    for trial in trials:
        if process := printed.get(trial.number):
            completed = trial.number in process.completed
            assert trial.state == (TrialState.COMPLETE if completed else TrialState.PRUNED)
            assert trial.system_attrs["hpo:worker"]["pid"] == process.pid
        elif trial.state != TrialState.FAIL:
            assert trial.system_attrs["hpo:worker"]["pid"] in killed


def check_attempts(chaos: Chaos, trials: Sequence[FrozenTrial]) -> None:
    """Check that each ended attempt has a reason, and that trials fail only by too many of them."""
    killed = {process.pid for process in chaos.processes if process.killed}
    suspended = {process.pid for process in chaos.processes if process.suspended}
    for trial in trials:
        for attempt in attempts(trial):
            assert attempt["ended"] == "died"
            ended, silent = ENDED.fullmatch(attempt["reason"]), NO_HEARTBEAT.fullmatch(attempt["reason"])
            found = ended or silent
            assert found is not None
            assert attempt["worker"] == found[1]
            assert int(found[2]) in (killed if ended else suspended)
        deaths = deaths_without_progress(attempts(trial))
        if trial.state == TrialState.FAIL:
            assert deaths == MAX_DEATHS + 1
            assert trial.user_attrs["reason"].startswith(f"its process died {deaths} times: ")
        else:
            assert deaths <= MAX_DEATHS


def check_results(trials: Sequence[FrozenTrial], undisturbed: Sequence[FrozenTrial]) -> None:
    """Check that each trial has the parameters, seed and learning curve of an undisturbed search."""
    assert [trial.params for trial in trials] == [trial.params for trial in undisturbed]
    assert [trial.user_attrs["seed"] for trial in trials] == [trial.user_attrs["seed"] for trial in undisturbed]
    for trial, other in zip(trials, undisturbed, strict=True):
        if trial.state != TrialState.FAIL:
            curve, expected = trial.system_attrs["hpo:curve"], other.system_attrs["hpo:curve"]
            assert curve.keys() == expected.keys()
            epochs = len(curve["val_accuracy"])
            assert epochs == EPOCHS if trial.state == TrialState.COMPLETE else epochs in RUNGS
            for metric, values in curve.items():
                assert len(values) == epochs
                assert all(map(close, values, expected[metric]))
            assert trial.intermediate_values == dict(enumerate(curve["val_accuracy"], start=1))
            assert trial.value == curve["val_accuracy"][-1]


def close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=TOLERANCE)


def check_readable(storage: Storage, trials: Sequence[FrozenTrial]) -> None:
    """Check that the file is undamaged, and that plain Optuna reads the study as hpo does."""
    if storage.location.file is not None:
        with closing(sqlite3.connect(storage.location.file)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    with plain(storage.location.full_url) as by_optuna:
        assert optuna.load_study(study_name="chaos", storage=by_optuna).trials == list(trials)
