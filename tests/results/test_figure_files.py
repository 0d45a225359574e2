"""Figures as files: pages that need nothing else, images by a real browser, and what is there where neither can be."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import optuna
import plotly.graph_objects as go
import pytest
from optuna.trial import FrozenTrial
from stored_studies import trial

from hpo.errors import HpoError, UsageError
from hpo.results.derived_names import file_stem
from hpo.results.figures.files import plot, save
from hpo.storage import Storage

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH; on Debian: apt-get install chromium")
HOSTILE = "</script><script>alert(1)</script>/../$<b>ü"


def trials() -> list[FrozenTrial]:
    made = [trial(value) for value in (0.3, 0.8)]
    for each in made:
        each.system_attrs = {"hpo:curve": {"val_accuracy": [0.1, 0.8], "train_accuracy": [0.2, 0.9]}}
    return made


def test_each_figure_is_a_page_that_needs_nothing_else(
    storage: Storage, stored: Callable[..., optuna.Study], tmp_path: Path
) -> None:
    stored(trials())
    folder = tmp_path / "new" / "folder"
    paths = plot(storage, "digits", folder)
    kinds = ["curves", "landscape", "history", "importances"]
    assert paths == [folder / f"digits-{kind}.html" for kind in kinds]
    assert sorted(folder.iterdir()) == sorted(paths)
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert text.startswith("<!doctype html>")
        assert "plotly.js v" in text
        assert not re.search(r"<(script|link|img)[^>]+(src|href)=", text)


def test_some_kinds_may_be_asked_for(storage: Storage, stored: Callable[..., optuna.Study], tmp_path: Path) -> None:
    stored(trials())
    assert [path.name for path in plot(storage, "digits", tmp_path, ["history", "curves", "history"], best=1)] == [
        "digits-history.html",
        "digits-curves.html",
    ]
    text = (tmp_path / "digits-curves.html").read_text(encoding="utf-8")
    assert "Best-1" in text
    assert "Best-2" not in text
    with pytest.raises(UsageError, match="unknown figure 'nothing'"):
        plot(storage, "digits", tmp_path, ["nothing"])


def test_a_name_is_data_in_the_page_and_in_the_files_name(tmp_path: Path) -> None:
    figure = go.Figure(layout={"title": {"text": HOSTILE}})
    (path,) = save({"curves": figure}, HOSTILE, tmp_path, "html")
    assert list(tmp_path.iterdir()) == [path]
    (innocent,) = save({"curves": go.Figure()}, "digits", tmp_path, "html")
    text = path.read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert text.count("<script") == innocent.read_text(encoding="utf-8").count("<script")
    assert "<title>&lt;/script&gt;&lt;script&gt;" in text


@pytest.mark.parametrize("name", ["digits", "mnist-dropout_2", "a.b", "größe", "実験1"])
def test_a_plain_name_is_its_own(name: str) -> None:
    assert file_stem(name) == name


def test_no_two_studies_share_a_file_and_none_leaves_its_folder() -> None:
    names = ["a/b", "a%2Fb", "a b", "a_b", "..", ".hidden", "-o", "a\\b", "a:b", "x" * 200, "x" * 199 + "y", "ü" * 200]
    stems = [file_stem(name) for name in names]
    assert len(set(stems)) == len(names)
    for stem in stems:
        assert not set(stem) & set('/\\:*?"<>| \n')
        assert stem[0] not in ".-"
        assert len(stem.encode()) <= 120


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(HpoError, match=r"taken: cannot be created \(File exists\)"):
        save({"curves": go.Figure()}, "digits", tmp_path / "taken", "html")
    (tmp_path / "digits-curves.html").mkdir()
    with pytest.raises(HpoError, match=r"digits-curves.html: cannot be written"):
        save({"curves": go.Figure()}, "digits", tmp_path, "html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits-curves.html", "taken"]


def test_a_folder_that_gets_no_figure_is_not_made(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # as on a full disk
    try:
        with pytest.raises(HpoError, match=r"new/folder/digits-curves\.html: cannot be written"):
            save({"curves": go.Figure()}, "digits", tmp_path / "new" / "folder", "html")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@needs_chromium
def test_each_figure_is_an_image(storage: Storage, stored: Callable[..., optuna.Study], tmp_path: Path) -> None:
    stored(trials())

    async def cell() -> list[Path]:
        """What a notebook's cell does: an event loop runs while it is executed."""
        return plot(storage, "digits", tmp_path, ["curves", "history"], form="png")

    paths = asyncio.run(cell())
    assert [path.name for path in paths] == ["digits-curves.png", "digits-history.png"]
    sizes = []
    for path in paths:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        assert content.endswith(b"IEND\xaeB`\x82")
        sizes.append(struct.unpack(">II", content[16:24]))
    assert sizes == [(2400, 600), (2400, 1400)]


@pytest.mark.parametrize("browser", ["missing", "broken"])
def test_without_a_browser_nothing_is_written(
    storage: Storage,
    stored: Callable[..., optuna.Study],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    browser: str,
) -> None:
    stored(trials())
    place = tmp_path / "chromium"
    if browser == "broken":
        place.write_text("#!/bin/sh\nexit 1\n")
        os.chmod(place, 0o755)
    monkeypatch.setenv("BROWSER_PATH", str(place))
    said = (
        "`apt install chromium`, or `plotly_get_chrome`"
        if browser == "missing"
        else "PNG: the browser failed (The browser "
    )
    with pytest.raises(HpoError, match=re.escape(said)) as caught:
        plot(storage, "digits", tmp_path / "figures", form="png")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "figures").exists()
