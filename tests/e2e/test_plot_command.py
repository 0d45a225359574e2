"""`hpo plot`: figures of a launched study as files, and errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from command import Outcome

from hpo.results.figures.kinds import ACTIVATIONS, KINDS

Run = Callable[..., Outcome]


def test_a_launched_study_is_plotted(hpo: Run, launched: None, folder: Path) -> None:
    outcome = hpo("plot", "tiny")
    kinds = ["curves", "landscape", "history", "importances"]
    assert outcome == (0, "".join(f"tiny-{kind}.html\n" for kind in kinds), "")
    assert all((folder / line).stat().st_size > 1_000_000 for line in outcome.out.split())

    outcome = hpo("plot", "tiny", "--figure", "history", "--figure", "curves", "-n", "2", "-o", "there")
    assert outcome == (0, "there/tiny-history.html\nthere/tiny-curves.html\n", "")
    assert "2 best trials" in (folder / "there/tiny-curves.html").read_text()


def test_every_kind_is_in_the_help_and_the_documentation(hpo: Run) -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "how-to" / "figures.md").read_text()
    shown = hpo("plot", "--help").out
    for kind in [*KINDS, ACTIVATIONS]:
        assert kind in shown
        assert f"| `{kind}` |" in page


def test_an_error_is_one_line(
    hpo: Run, after: Callable[..., None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hpo("plot", "tiny").err.startswith("hpo: sqlite:///hpo.db: no such file")
    after("launch tiny.toml --quiet --trials 2")
    assert hpo("plot", "tiny", "--figure", "curve") == (
        2,
        "",
        "hpo: unknown figure 'curve' (did you mean 'curves'?); known: front, curves, landscape, history, "
        "importances, activations\n",
    )
    assert hpo("plot", "tony").err.startswith("hpo: sqlite:///hpo.db: no study named 'tony' (did you mean 'tiny'?)")
    monkeypatch.setenv("BROWSER_PATH", str(folder / "nowhere"))
    outcome = hpo("plot", "tiny", "--format", "png", "-o", "there")
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err == (
        "hpo: PNG: no Chrome or Chromium found: `apt install chromium`, or `plotly_get_chrome`; set BROWSER_PATH for a "
        "browser that is not on PATH, or use .html (--format html), which needs no browser\n"
    )
    assert not (folder / "there").exists()
