"""Rounds of narrowing and searching: each an ordinary study, interrupted anywhere, and gone on with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from tiny import StopAfter, check_whole, params, search, study_of, trials_of
from worker_threads import ThreadCrew

from hpo.errors import HpoError
from hpo.results.display.progress import PlainProgress
from hpo.results.narrow.next_study import propose
from hpo.search.options import LaunchOptions
from hpo.service.crew import local
from hpo.service.narrowing_rounds import run_rounds
from hpo.service.worker import WorkerOptions
from hpo.storage import Storage, best_trials, load_study, open_storage, study_names

pytestmark = pytest.mark.usefixtures("no_figures")

STUDY = study_of(network={"dropout": {"low": 0.0, "high": 0.4}}, search={"trials": 8, "population": 4})


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("searched") / "hpo.db"
    storage = open_storage(f"sqlite:///{file}")
    search(STUDY, storage)
    storage.close()
    return file


@pytest.fixture
def new_storage(searched: Path, tmp_path: Path) -> Iterator[Callable[[], Storage]]:
    """Storages with the study, searched."""
    opened: list[Storage] = []

    def make() -> Storage:
        file = shutil.copy(searched, tmp_path / f"rounds{len(opened)}.db")
        opened.append(open_storage(f"sqlite:///{file}"))
        return opened[-1]

    yield make
    for storage in opened:
        storage.close()


def rounds(
    storage: Storage,
    count: int = 2,
    *,
    name: str | None = None,
    looks: float = float("inf"),
    workers: int | None = None,
) -> tuple[bool, list[str]]:
    said: list[str] = []
    searched = run_rounds(
        storage,
        "tiny",
        count,
        new_name=name,
        options=LaunchOptions(device="cpu", workers=workers),
        display=lambda: PlainProgress(Console(stderr=True)),
        say=said.append,
        stop=StopAfter(looks),
    )
    return not searched[-1].interrupted, said


def test_each_round_narrows_and_searches_the_study_of_the_round_before(new_storage: Callable[[], Storage]) -> None:
    storage = new_storage()
    ended, said = rounds(storage)
    assert ended
    assert study_names(storage) == ["tiny", "tiny-2", "tiny-3"]
    best = {name: best_trials(storage, name, 1)[0].value or 0.0 for name in study_names(storage)}
    for line, name, before in zip(said, ["tiny-2", "tiny-3"], ["tiny", "tiny-2"], strict=True):
        gain = best[name] - best[before]
        how = f"{abs(gain):.4f} {'better' if gain > 0 else 'worse'} than" if gain else "as good as"
        assert line == f"{name}: best val acc {best[name]:.4f}, {how} {before} ({best[before]:.4f})"
    for name in ("tiny-2", "tiny-3"):
        check_whole(trials_of(storage, name), 8)
    assert propose(storage, "tiny-2")[0].search.start_from == ["tiny-2", "tiny"]


def test_workers_share_a_round(new_storage: Callable[[], Storage], monkeypatch: pytest.MonkeyPatch) -> None:
    storage = new_storage()
    asked: list[int] = []

    def crew(url: str, options: WorkerOptions, workers: int, say: object) -> ThreadCrew:
        asked.append(workers)
        return ThreadCrew(storage, options)

    monkeypatch.setattr(local, "LocalCrew", crew)
    ended, said = rounds(storage, 1, workers=2)
    assert (ended, asked, len(said)) == (True, [2], 1)
    check_whole(trials_of(storage, "tiny-2"), 8)
    assert propose(storage, "tiny-2")[0].search.start_from == ["tiny-2", "tiny"]


def test_rounds_go_on_where_they_were_interrupted(new_storage: Callable[[], Storage]) -> None:
    whole, broken = new_storage(), new_storage()
    rounds(whole)
    said: dict[int, int] = {}
    ended = False
    while not ended:
        looks = 3 + 5 * len(said)
        ended, lines = rounds(broken, looks=looks)
        said[looks] = len(lines)
    assert set(said.values()) == {0, 1, 2}  # lines: interrupted in the first round, in the second, and not at all
    for name in ("tiny-2", "tiny-3"):
        assert params(trials_of(broken, name)) == params(trials_of(whole, name))
    assert study_names(broken) == study_names(whole)


def test_the_same_rounds_again_train_nothing(
    new_storage: Callable[[], Storage], capsys: pytest.CaptureFixture[str]
) -> None:
    storage = new_storage()
    first = rounds(storage)
    before = [trial.datetime_complete for trial in trials_of(storage, "tiny-3")]
    capsys.readouterr()
    assert rounds(storage) == first
    assert "population: " not in capsys.readouterr().err
    assert [trial.datetime_complete for trial in trials_of(storage, "tiny-3")] == before


def test_a_study_of_the_name_that_is_another_is_left_alone(new_storage: Callable[[], Storage]) -> None:
    storage = new_storage()
    search(study_of(name="tiny-2", search={"trials": 1}), storage)
    with pytest.raises(
        HpoError, match=r"^study 'tiny-2' already exists and differs from the study that narrowing 'tiny' .* --name$"
    ):
        rounds(storage)
    assert len(trials_of(storage, "tiny-2")) == 1
    ended, _ = rounds(storage, name="other")
    assert ended
    assert study_names(storage) == ["tiny", "tiny-2", "other", "other-2"]
    assert load_study(storage, "other-2").user_attrs["hpo:study"].count('"start_from": ["other", "tiny"]') == 1
