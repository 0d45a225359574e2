"""Figures as files: pages that open anywhere without a network, or images.

All figures are drawn before the first is written, and each file is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import plotly.graph_objects as go

from hpo.errors import HpoError, UsageError
from hpo.files import write_atomically
from hpo.results.figures.kinds import ACTIVATIONS, check_kinds, draw
from hpo.results.figures.source import BEST, read_source
from hpo.results.naming import file_stem
from hpo.storage import Storage


def plot(
    storage: Storage, name: str, folder: Path, kinds: Sequence[str] = (), best: int = BEST, form: str = "html"
) -> list[Path]:
    """Write the figures of the study of that name; return the files. `form` is html or png."""
    return save(figures(storage, name, kinds, best), name, folder, form)


def figures(storage: Storage, name: str, kinds: Sequence[str] = (), best: int = BEST) -> dict[str, go.Figure]:
    """Return the figures of the study of that name by kind, without `kinds` all that are of its trials.

    `best` is how many learning curves are drawn.
    """
    check_kinds(kinds)
    of_trials = [kind for kind in kinds if kind != ACTIVATIONS]
    drawn = draw(read_source(storage, name, best), of_trials) if of_trials or not kinds else {}
    if ACTIVATIONS in kinds:
        from hpo.results.figures.activations import fresh_networks, histograms  # loads torch, which no other kind needs

        drawn[ACTIVATIONS] = histograms(name, fresh_networks(storage, name))
    return drawn


def save(figures: Mapping[str, go.Figure], name: str, folder: Path, form: str) -> list[Path]:
    """Write figures, by kind, to `NAME-KIND.FORM` in the folder, which is made if need be; return the files."""
    paths = [folder / f"{file_stem(name)}-{kind}.{form}" for kind in figures]
    contents: Sequence[str | bytes]
    if form == "png":
        from hpo.results.figures.png import pngs  # pages need no browser

        contents = pngs(figures.values())
    else:
        contents = [page(figure, f"{name}: {kind}") for kind, figure in figures.items()]
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in zip(paths, contents, strict=True):
            write_atomically(content, path)
    except (OSError, HpoError) as error:
        with contextlib.suppress(OSError):  # the first that holds a figure, or was never made
            for each in made:
                each.rmdir()
        if isinstance(error, HpoError):
            raise
        raise HpoError(f"{folder}: cannot be made ({error.strerror or error})") from error
    return paths


def form_of(path: Path) -> str:
    """Return what a figure's file shall hold, by its name. Raises UsageError for any but .html and .png."""
    form = path.suffix.lower().removeprefix(".")
    if form not in ("html", "png"):
        raise UsageError(f"{path}: a figure's file is named .html or .png")
    return form


def save_as(figure: go.Figure, title: str, path: Path) -> None:
    """Write one figure to the file of that name, which says in which form."""
    if form_of(path) == "png":
        from hpo.results.figures.png import pngs

        write_atomically(pngs([figure])[0], path)
    else:
        write_atomically(page(figure, title), path)


def page(figure: go.Figure, title: str) -> str:
    """Return a page of HTML that holds the figure, and plotly.js with it."""
    drawn = figure.to_html(
        full_html=False, include_plotlyjs=True, default_height="96vh", config={"displaylogo": False, "responsive": True}
    )
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title>'
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{drawn}\n</body>\n</html>\n'
