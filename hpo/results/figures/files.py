"""Figure files: HTML pages that need no network, or PNG images.

All figures are drawn before the first file is written; each file is written atomically.
"""

from __future__ import annotations

import contextlib
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import plotly.graph_objects as go

from hpo.errors import HpoError, UsageError
from hpo.files import write_atomically
from hpo.results.derived_names import file_stem
from hpo.results.figures.kinds import ACTIVATIONS, check_kinds, draw
from hpo.results.figures.source import BEST, read_source
from hpo.storage import Storage


def plot(
    storage: Storage, name: str, folder: Path, kinds: Sequence[str] = (), best: int = BEST, form: str = "html"
) -> list[Path]:
    """Write the figures of a study as `form`, html or png; return the files."""
    return save(figures(storage, name, kinds, best), name, folder, form)


def figures(storage: Storage, name: str, kinds: Sequence[str] = (), best: int = BEST) -> dict[str, go.Figure]:
    """Return the figures of a study by kind; without `kinds`, all figures of its trials.

    `best` is the number of learning curves.
    """
    check_kinds(kinds)
    of_trials = [kind for kind in kinds if kind != ACTIVATIONS]
    drawn = draw(read_source(storage, name, best), of_trials) if of_trials or not kinds else {}
    if ACTIVATIONS in kinds:
        from hpo.results.figures.activations import (  # loads torch, which no other kind needs
            histograms,
            initial_networks,
        )

        drawn[ACTIVATIONS] = histograms(name, initial_networks(storage, name))
    return drawn


def save(figures: Mapping[str, go.Figure], name: str, folder: Path, form: str) -> list[Path]:
    """Write the figures to `NAME-KIND.FORM` in the folder, which is created if needed; return the files."""
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
        with contextlib.suppress(OSError):  # a folder with a figure, or one that was not created
            for each in made:
                each.rmdir()
        if isinstance(error, HpoError):
            raise
        raise HpoError(f"{folder}: cannot be created ({error.strerror or error})") from error
    return paths


def form_of(path: Path) -> str:
    """Return the format of a figure file, html or png, by its name. Raises UsageError for other names."""
    form = path.suffix.lower().removeprefix(".")
    if form not in ("html", "png"):
        raise UsageError(f"{path}: use a name that ends in .html or .png")
    return form


def save_as(figure: go.Figure, title: str, path: Path) -> None:
    """Write one figure to a file, in the format of its name."""
    if form_of(path) == "png":
        from hpo.results.figures.png import pngs

        write_atomically(pngs([figure])[0], path)
    else:
        write_atomically(page(figure, title), path)


def page(figure: go.Figure, title: str) -> str:
    """Return an HTML page with the figure and plotly.js."""
    drawn = figure.to_html(
        full_html=False, include_plotlyjs=True, default_height="96vh", config={"displaylogo": False, "responsive": True}
    )
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title>'
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{drawn}\n</body>\n</html>\n'
