"""Figures as files: pages that open anywhere without a network, or images.

All figures are drawn before the first is written, and each file is there whole or not at all.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import plotly.graph_objects as go

from hpo.errors import HpoError
from hpo.results.figures.kinds import check_kinds, draw
from hpo.results.figures.source import BEST, read_source
from hpo.results.naming import file_stem
from hpo.results.writing import write
from hpo.storage import Storage


def plot(
    storage: Storage, name: str, folder: Path, kinds: Sequence[str] = (), best: int = BEST, form: str = "html"
) -> list[Path]:
    """Write the figures of the study of that name, without `kinds` all of them; return the files.

    `best` is how many learning curves are drawn, `form` html or png.
    """
    check_kinds(kinds)
    return save(draw(read_source(storage, name, best), kinds), name, folder, form)


def save(figures: Mapping[str, go.Figure], name: str, folder: Path, form: str) -> list[Path]:
    """Write figures, by kind, to `NAME-KIND.FORM` in the folder, which is made if need be; return the files."""
    paths = [folder / f"{file_stem(name)}-{kind}.{form}" for kind in figures]
    contents: Sequence[str | bytes]
    if form == "png":
        from hpo.results.figures.png import pngs  # pages need no browser

        contents = pngs(figures.values())
    else:
        contents = [page(figure, f"{name}: {kind}") for kind, figure in figures.items()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HpoError(f"{folder}: cannot be made ({error.strerror or error})") from error
    for path, content in zip(paths, contents, strict=True):
        write(content, path)
    return paths


def page(figure: go.Figure, title: str) -> str:
    """Return a page of HTML that holds the figure, and plotly.js with it."""
    drawn = figure.to_html(
        full_html=False, include_plotlyjs=True, default_height="96vh", config={"displaylogo": False, "responsive": True}
    )
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title>'
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{drawn}\n</body>\n</html>\n'
