"""Results of objective studies: confirmed under fresh seeds, compared, exported and reported from Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from schemas import schema

import hpo
from hpo.search.points import trial_seed
from hpo.storage import Storage

FUNCTION = """
import optuna, random

def objective(trial):
    x = trial.suggest_float("x", -10, 20)
    layers = trial.suggest_int("layers", 1, 3)
    units = [trial.suggest_int(f"units_{layer}", 4, 8) for layer in range(layers)]
    noise = random.Random(trial.user_attrs["seed"]).random()
    for step in range(3):
        trial.report(abs(x) + 3 - step, step)
        if trial.should_prune(): raise optuna.TrialPruned
    # more
    return abs(x) + layers + noise
"""
MIDDLE = {"x": 5.0, "layers": 2, "units_0": 6, "units_1": 6}

Launch = Callable[..., hpo.StoredStudy]


@pytest.fixture
def launch(tmp_path: Path, storage: Storage) -> Launch:
    """Launch a study of this function in the storage."""

    def launched(code: str = FUNCTION, baseline: dict[str, Any] | None = None, **search: Any) -> hpo.StoredStudy:
        (tmp_path / "own.py").write_text(code)
        study = hpo.Study(
            name="own",
            objective="own.py:objective",
            search=hpo.Search(**{"trials": 6, "sampler": "random", "pruner": "none", **search}),
            baseline=baseline,
            folder=tmp_path,
        )
        return hpo.launch(study, storage=f"sqlite:///{tmp_path / 'hpo.db'}", progress="quiet")

    return launched


def confirmed(study: hpo.StoredStudy, top: int = 2, seeds: int = 4) -> Any:
    return study.confirm(top=top, seeds=seeds, progress="quiet")


def test_the_best_and_the_baseline_are_run_again_under_the_same_fresh_seeds(launch: Launch, tmp_path: Path) -> None:
    study = launch()
    found = confirmed(study).found
    assert [each.candidate.label for each in found.ranked if not each.candidate.baseline] == ["Best-1", "Best-2"]
    assert found.baseline.candidate.params == MIDDLE
    assert found.winner.candidate.params == found.ranked[0].candidate.params
    before = {trial.seed for trial in study.trials()}
    seeds = [set(each.scores) for each in found.ranked]
    assert seeds[0] == seeds[1] == seeds[2]
    assert len(seeds[0]) == 4
    assert not seeds[0] & before

    def exact(params: Any) -> float:
        return abs(float(params["x"])) + int(params["layers"])

    # the noise depends on the seed alone, so that paired differences are exact
    gain = found.gain.pairs.difference
    assert gain.mean == pytest.approx(exact(found.winner.candidate.params) - exact(MIDDLE))
    assert gain.sd == 0
    assert not found.ignores_seeds
    assert found.winner.estimate.sd > 0

    runs = hpo.load("own-confirm", storage=f"sqlite:///{tmp_path / 'hpo.db'}")
    assert runs.study.resolved()["search"]["repeats"] == 4
    assert len(runs.trials()) == 12
    (tmp_path / "own.py").unlink()
    again = study.confirmation
    assert again is not None
    assert again.to_json() == confirmed(study).to_json()  # without calling the function
    assert str(again).startswith("own: mean value over 4 fresh seeds, best first\n")


def test_the_winner_is_exported_with_its_confirmation(launch: Launch) -> None:
    study = launch()
    with pytest.raises(hpo.HpoError, match="study 'own' has not been confirmed: run `hpo confirm` first"):
        study.export(confirmed=True)
    winner = confirmed(study).found.winner
    exported = study.export(confirmed=True)
    jsonschema.validate(exported, schema("objective"))
    assert (exported["schema"], exported["trial"]) == ("hpo.objective/2", winner.candidate.trial)
    assert exported["confirmed"]["mean"] == winner.estimate.mean
    assert exported["confirmed"]["baseline"] == MIDDLE
    assert study.export()["confirmed"] is None
    without = {key: value for key, value in study.export().items() if key != "confirmed"}
    jsonschema.validate({**without, "schema": "hpo.objective/1"}, schema("objective-1"))


def test_a_function_that_ignores_the_seed_is_named(launch: Launch) -> None:
    study = launch(FUNCTION.replace("+ noise", ""))
    lines = confirmed(study).lines()
    ignored = "all 4 runs of each configuration gave the same value: the function does not use trial.user_attrs['seed']"
    assert ignored in lines
    assert not any("cannot be told apart" in line for line in lines)
    assert ignored in study.export(confirmed=True)["confirmed"]["conclusions"]


def test_a_failing_baseline_is_reported(launch: Launch) -> None:
    study = launch(FUNCTION.replace("    # more", "    if x == 5.0: raise ValueError('odd')"))
    result = confirmed(study)
    assert result.found.baseline is None
    assert [each.label for each in result.found.lost] == ["baseline"]
    assert "every run of baseline failed" in result.lines()


def test_pruned_runs_have_no_score(launch: Launch) -> None:
    code = FUNCTION.replace("    # more", "    if trial.number % 4 == 1: raise optuna.TrialPruned")
    result = confirmed(launch(code))
    assert [(each.failed, len(each.scores)) for each in result.found.ranked] == [(1, 3)] * 3


def test_no_run_of_a_confirmation_should_be_pruned(launch: Launch) -> None:
    study = launch(pruner="median", trials=16)
    assert any(trial.state == "pruned" for trial in study.trials())
    assert {each.failed for each in confirmed(study).found.ranked} == {0}


def test_the_seed_of_a_run_cannot_be_replaced(launch: Launch) -> None:
    study = launch(FUNCTION.replace("    # more", "    trial.set_user_attr('seed', 7)"))
    found = confirmed(study).found
    assert {len(each.scores) for each in found.ranked} == {4}
    assert 7 not in found.winner.scores


def test_the_baseline_of_the_file_takes_part(launch: Launch) -> None:
    found = confirmed(launch(baseline={"x": 1, "layers": 1})).found
    assert found.baseline.candidate.params == {"x": 1.0, "layers": 1, "units_0": 6}


def test_a_best_configuration_may_be_the_baseline(launch: Launch) -> None:
    code = "def objective(trial):\n    return trial.suggest_categorical('kind', [True, None, 'a']) is not True\n"
    study = launch(code, points=[{"kind": True}, {"kind": None}])
    result = confirmed(study, top=3)
    assert [each.candidate.params["kind"] for each in result.found.ranked if each.candidate.baseline] == [True]
    assert "tuning did not help: Best-1" in str(result)
    page = hpo.load("own-confirm", storage=study.storage).report()
    assert "own-confirm.json" in page  # TOML does not have None


@pytest.mark.parametrize(
    ("code", "baseline", "problem"),
    [
        (
            FUNCTION,
            {"layer": 2},
            "study 'own': baseline.layer: no completed trial has this parameter (did you mean 'layers'",
        ),
        (
            "def objective(trial):\n    return 1.0\n",
            None,
            "study 'own' searches no parameter, so there is nothing to confirm",
        ),
        ("def objective(trial):\n    return float('inf')\n", None, "study 'own': no trial to rank: 6 complete"),
    ],
)
def test_an_error_stores_nothing(launch: Launch, code: str, baseline: Any, problem: str, tmp_path: Path) -> None:
    study = launch(code, baseline)
    with pytest.raises(hpo.HpoError) as caught:
        confirmed(study)
    assert str(caught.value).startswith(problem)
    with pytest.raises(hpo.UsageError, match=r"--device: own\.py:objective chooses its device itself"):
        study.confirm(device="cpu", progress="quiet")
    assert [each.name for each in hpo.studies(storage=f"sqlite:///{tmp_path / 'hpo.db'}")] == ["own"]


def test_of_several_values_the_first_ranks(launch: Launch) -> None:
    code = FUNCTION.replace("return abs(x) + layers + noise", "return abs(x) + noise, -float(layers)")
    code = "\n".join(
        line for line in code.splitlines() if not any(word in line for word in ("prune", "report", "step"))
    )
    study = launch(code, direction=["minimize", "maximize"])
    result = confirmed(study)
    assert result.lines()[1].split()[:2] == ["value", "0"]
    assert study.front
    front = study.export()
    jsonschema.validate(front, schema("front"))
    text = str(hpo.compare("own-confirm", storage=study.storage))
    assert text.splitlines()[0].split() == ["configuration", "trials", "value", "0", "value", "1", "difference", "p"]


def test_configurations_are_compared_by_their_values(launch: Launch, tmp_path: Path) -> None:
    points = [{"x": 1.0, "layers": 1}, {"x": -4.0, "layers": 1}, {"x": 15.0, "layers": 1}]
    study = launch(
        FUNCTION.replace("    # more", "    if x == 15.0 and trial.number % 2: raise ValueError('odd')"),
        points=points,
        repeats=3,
        trials=9,
    )
    comparison = hpo.compare("own", storage=study.storage)
    first, second, third = comparison.rows
    assert [row.group.params for row in comparison.rows] == [{**point, "units_0": 6} for point in points]
    assert [len(group.runs) for group in comparison.groups] == [3, 3, 2]
    assert [reason.split(" (")[0] for reason in third.group.reasons] == ["ValueError: odd"]
    assert second.paired is not None
    assert second.paired.difference.mean == pytest.approx(3.0)
    assert second.why == "the difference is the same in all pairs"
    assert first.summary is not None
    noise = [trial.value - 2.0 for trial in study.trials()[:3] if trial.value is not None]
    assert first.summary.final["value"].mean == pytest.approx(2 + float(np.mean(noise)))
    assert first.summary.best["value"].mean == 2.0
    assert (first.summary.gap, first.summary.epochs_to_95) == (None, None)
    lines = comparison.lines()
    assert lines[0].split() == ["configuration", "trials", "value", "best", "reported", "difference", "p"]
    assert "mean ± standard deviation over runs; best reported: the best value of trial.report in a run" in lines
    tree = comparison.to_json()
    assert tree["groups"][0]["summary"]["final"]["value"]["n"] == 3
    assert tree["groups"][0]["summary"]["gap"] is None
    figure = comparison.plot()
    drawn = [trace for trace in figure.data if trace.line.width == 1.8]
    assert [list(trace.x) for trace in drawn] == [[0, 1, 2]] * 3
    assert list(drawn[0].y) == [4.0, 3.0, 2.0]
    by = hpo.compare("own", by="x", storage=study.storage)
    assert len(by.plot().layout.annotations) == 3


def test_a_search_brings_its_best_configuration(launch: Launch) -> None:
    study = launch()
    comparison = hpo.compare("own", f"own#{study.top(2)[1].number}", storage=study.storage)
    assert [row.group.numbers for row in comparison.rows] == [(trial.number,) for trial in study.top(2)]
    assert "a test needs two common seeds, they have none; set search.points and search.repeats" in str(comparison)


def test_values_that_mean_something_else_are_not_compared(launch: Launch, tmp_path: Path) -> None:
    study = launch("def objective(trial):\n    return trial.suggest_float('x', 0, 1)\n")
    with pytest.raises(hpo.UsageError, match=r"own: no run has reported values \(trial\.report\)"):
        hpo.compare("own", storage=study.storage).plot()
    other = hpo.read({**study.study.resolved(), "name": "other"}, ["search.direction=maximize"])
    launched = hpo.Study(**{**other.resolved(), "folder": tmp_path})
    hpo.launch(launched, storage=study.storage, progress="quiet")
    with pytest.raises(hpo.UsageError) as caught:
        hpo.compare("own", "other", storage=study.storage)
    assert str(caught.value) == (
        "study 'other' has an objective function and maximizes value, and study 'own' has an objective function and "
        "minimizes value: they cannot be compared"
    )


def test_a_report_has_the_sections_that_need_only_values(launch: Launch) -> None:
    study = launch()
    page = study.report()
    for words in ("Not confirmed", "runs the best configurations again", "-10 to 20", "1 to 3, whole numbers"):
        assert words in page
    assert "4 to 8, whole numbers, in some trials" in page
    assert "own.py:objective" in page
    assert "SHA-256 of own.py" in page
    assert "Verification" not in page
    assert "sealed" not in page
    assert "hpo replay" not in page
    confirmed(study)
    page = study.report()
    assert "hpo confirm own --top 2 --seeds 4" in page
    assert "in the search" in page


def test_seeds_are_those_of_the_study_and_the_repeat(launch: Launch) -> None:
    study = launch(points=[{"x": 1.0}, {"x": 2.0}], repeats=3)
    checked = study.study.checked
    assert [trial.seed for trial in study.trials()] == [trial_seed(checked, number) for number in range(6)]
