"""`hpo launch`: whole runs, interrupted and continued runs, exports that are launched again."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jsonschema
import optuna
import pytest
from command import Outcome, Running
from deadlines import deadline
from optuna.trial import FrozenTrial
from schemas import schema

from hpo.storage import load_study, open_storage

Run = Callable[..., Outcome]
Start = Callable[..., Running]

MORE = ("--trials", "12")
LONG = ("--set", "training.epochs=100", "--set", "network.hidden=[64, 64]", "--trials", "12")


def trials(name: str) -> list[FrozenTrial]:
    storage = open_storage(None)
    try:
        return load_study(storage, name).get_trials(deepcopy=False)
    finally:
        storage.close()


def states(name: str) -> Counter[str]:
    return Counter(trial.state.name for trial in trials(name))


def test_a_launch_trains_every_trial_and_names_the_best(hpo: Run) -> None:
    outcome = hpo("launch", "tiny.toml")
    assert (outcome.status, outcome.out) == (0, "")
    lines = outcome.err.splitlines()
    assert lines[0].startswith("tiny: 6 trials, 4 at once on cpu in float32")
    assert [line.split(" (trial ")[0] for line in lines if line.startswith("Best-")] == [
        f"Best-{rank}" for rank in range(1, 6)
    ]
    assert sum(line.startswith("population: ") for line in lines) == 2
    assert lines[-3:] == ["next: hpo confirm tiny", "      hpo export tiny -o best.json", "      hpo dashboard"]
    assert states("tiny") == {"COMPLETE": 6}
    assert hpo("top", "tiny", "-n", "5").out.splitlines() == [line for line in lines if line.startswith("Best-")]


def test_a_launch_without_a_c_compiler_says_so_and_trains_the_same(process: Start) -> None:
    compiled = process("launch", "tiny.toml").outcome()
    assert (compiled.status, "layers: " in compiled.err) == (0, False)
    by_torch = process("launch", "tiny.toml", "--storage", "sqlite:///other.db", CC="no-such-compiler").outcome()
    assert by_torch.status == 0
    assert "layers: computed by torch alone (there is no C compiler 'no-such-compiler'); " in by_torch.err
    curves = [
        {
            (trial.number, epoch): accuracy
            for trial in optuna.load_study(study_name="tiny", storage=url).trials
            for epoch, accuracy in trial.intermediate_values.items()
        }
        for url in ("sqlite:///hpo.db", "sqlite:///other.db")
    ]
    assert curves[0] == pytest.approx(curves[1], abs=0.026)  # one of 40 images


def test_a_launch_whose_trials_all_fail_reports_the_reason_and_no_command_suggests_it_again(hpo: Run) -> None:
    diverging = ("--set", "optimizer.lr.low=1e30", "--set", "optimizer.lr.high=1e35")
    why = "study 'tiny': no trial to rank: 6 failed (diverged: train_loss is "
    help_ = "it has ended, and a launch trains nothing more: fix that, and launch it under another --name\n"
    for launched in (hpo("launch", "tiny.toml", *diverging), hpo("launch", "tiny.toml", *diverging, "--quiet")):
        assert launched.status == 1
        last = launched.err.splitlines(keepends=True)[-1]
        assert last.startswith(f"hpo: {why}")
        assert last.endswith(f"; {help_}")
    for command in ("top", "export", "confirm", "test", "narrow", "compare", "verify"):
        outcome = hpo(command, "tiny")
        assert (outcome.status, outcome.out) == (1, ""), command
        assert outcome.err.startswith(f"hpo: {why}"), command
        assert outcome.err.endswith(help_), command
    assert hpo("export", "tiny", "--all").status == 0
    assert hpo("report", "tiny", "-o", "report.html").status == 0
    assert "no trial to rank: 6 failed (diverged: train_loss is " in Path("report.html").read_text(encoding="utf-8")


def test_quiet_prints_nothing(hpo: Run) -> None:
    narrow = ("--set", "optimizer.lr=0.1", "--trials", "2")
    assert hpo("launch", "tiny.toml", "--quiet", *narrow) == (0, "", "")
    assert states("tiny") == {"COMPLETE": 2}


def test_json_is_one_event_a_line_and_the_rest_is_on_stderr(hpo: Run) -> None:
    outcome = hpo("launch", "tiny.toml", "--json")
    assert outcome.status == 0
    events = [json.loads(line) for line in outcome.out.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "study_started"
    assert kinds[-1] == "study_ended"
    assert kinds.count("population_started") == kinds.count("population_ended") == 2
    assert kinds.count("epoch_ended") == 4
    assert events[-1]["completed"] == 6
    assert "Best-1 " in outcome.err


def test_options_override_the_file(hpo: Run) -> None:
    outcome = hpo(
        "launch", "tiny.toml", "--name", "other", "--trials", "3", "--population", "3", "--set", "data.split_seed=5"
    )
    assert outcome.status == 0
    assert outcome.err.startswith("other: 3 trials, 3 at once")
    assert states("other") == {"COMPLETE": 3}


def test_a_finished_study_is_not_trained_again(hpo: Run, launched: None) -> None:
    outcome = hpo("launch", "tiny.toml")
    assert outcome.status == 0
    assert "Best-1 " in outcome.err
    assert states("tiny") == {"COMPLETE": 6}


def test_a_changed_file_is_refused_without_extend(hpo: Run, launched: None) -> None:
    wider = ("--set", "optimizer.lr.high=0.9", "--trials", "8")
    outcome = hpo("launch", "tiny.toml", *wider)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert "optimizer.lr.high" in outcome.err
    assert "--name" in outcome.err
    assert states("tiny") == {"COMPLETE": 6}
    assert hpo("launch", "tiny.toml", *wider, "--extend").status == 0
    assert states("tiny") == {"COMPLETE": 8}


@pytest.mark.parametrize(
    ("args", "status", "problem"),
    [
        (["none.toml"], 2, "none.toml: no such file"),
        (["tiny.toml", "--set", "optimizer.lrr=1"], 2, "tiny.toml: --set optimizer.lrr: unknown key"),
        (["tiny.toml", "--set", "data.train_size=99999"], 2, "tiny.toml: data.train_size: "),
        (["tiny.toml", "--set", "data.dataset=mnist"], 1, ""),
        (["tiny.toml", "--device", "cudaa"], 2, ""),
        (["tiny.toml", "--storage", "sqlite:///missing/hpo.db"], 1, "sqlite:///missing/hpo.db: "),
    ],
)
def test_an_error_is_one_line(hpo: Run, folder: Path, args: list[str], status: int, problem: str) -> None:
    outcome = hpo("launch", *args)
    assert (outcome.status, outcome.out) == (status, "")
    assert outcome.err.startswith(f"hpo: {problem}")
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_study_continues_to_the_same_trials(
    hpo: Run, signal_at: Callable[..., None], signum: signal.Signals, status: int
) -> None:
    signal_at(3, signum)  # in the second population
    outcome = hpo("launch", "tiny.toml", "--json", *MORE)
    assert outcome.status == status
    assert json.loads(outcome.out.splitlines()[-1])["reason"] == "interrupted"
    assert "interrupted" in outcome.err
    assert "Traceback" not in outcome.err
    left = states("tiny")
    assert left["COMPLETE"] == 4
    assert left["RUNNING"] == 0

    assert hpo("launch", "tiny.toml", *MORE).status == 0
    assert hpo("launch", "tiny.toml", *MORE, "--name", "whole").status == 0
    broken, whole = ([(each.number, each.params, each.value) for each in trials(name)] for name in ("tiny", "whole"))
    assert broken == whole
    assert states("tiny") == {"COMPLETE": 12}


def test_a_second_signal_exits_at_once(process: Start) -> None:
    running = process("launch", "tiny.toml", "--json", *LONG)
    running.wait_until_blocked()  # from here on the current epoch cannot end: nobody reads its event
    while running.process.poll() is None:
        running.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(0.5)
    outcome = running.outcome()
    assert outcome.status in (130, -signal.SIGINT)  # the latter if a third signal arrived before the end
    assert "Traceback" not in outcome.err


def test_a_closed_pipe_of_events_stops_the_launch(process: Start) -> None:
    running = process("launch", "tiny.toml", "--json", *LONG)
    running.wait_for("epoch_ended")
    assert running.process.stdout is not None
    running.process.stdout.close()
    assert running.process.wait(deadline()) == 1
    assert states("tiny")["RUNNING"] == 0


def test_the_export_is_launched_as_a_study_of_one_trial(hpo: Run, launched: None) -> None:
    assert hpo("export", "tiny", "-o", "best.json").status == 0
    exported = json.loads(Path("best.json").read_text())
    jsonschema.validate(exported, schema("best"))
    best = max(trials("tiny"), key=lambda trial: (trial.value or 0, -trial.number))
    assert (exported["trial"], exported["value"], exported["params"]) == (best.number, best.value, best.params)
    assert exported["seed"] == best.user_attrs["seed"]

    assert hpo("launch", "best.json").status == 0
    assert states("tiny-best") == {"COMPLETE": 1}
    again = json.loads(hpo("export", "tiny-best").out)
    jsonschema.validate(again, schema("best"))
    assert again["params"] == {}
    assert again["data"] == exported["data"]
    assert again["config"]["optimizer"] == exported["config"]["optimizer"]


def test_an_export_of_searched_kinds_and_lists_is_launched(hpo: Run) -> None:
    searched = (
        "--set",
        'optimizer.kind={choices = ["sgd", "momentum", "adam"]}',
        "--set",
        "network.hidden={choices = [[8], [8, 8]]}",
        "--set",
        "network.batch_norm={choices = [true, false]}",
        "--set",
        "training.batch_size={low = 20, high = 40, step = 20}",
    )
    assert hpo("launch", "tiny.toml", *searched).status == 0
    assert hpo("export", "tiny", "-o", "best.json").status == 0
    jsonschema.validate(json.loads(Path("best.json").read_text()), schema("best"))
    assert hpo("launch", "best.json").status == 0
    assert states("tiny-best") == {"COMPLETE": 1}


def test_a_copy_is_continued_in_its_storage(hpo: Run, launched: None) -> None:
    assert hpo("copy", "tiny", "--to", "sqlite:///copy.db", "--name", "next").status == 0
    again = ("launch", "tiny.toml", "--name", "next", "--storage", "sqlite:///copy.db")
    assert "next: finished, 6 completed" in hpo(*again).err
    assert "next: finished, 7 completed" in hpo(*again, "--trials", "7", "--extend").err
    assert "6 complete" in hpo("studies").out


def test_optuna_itself_reads_the_study(launched: None) -> None:
    loaded = optuna.load_study(study_name="tiny", storage="sqlite:///hpo.db")
    assert len(loaded.trials) == 6
    assert loaded.best_trial.intermediate_values.keys() == {1, 2}
