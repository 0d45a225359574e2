"""Figures as PNG, drawn by an installed Chrome or Chromium: nothing is downloaded, and no page but the figure opened.

The browser is started once for all figures and is gone at the end. It is the first on PATH, or what BROWSER_PATH names.
It is talked to in a thread of its own: a notebook and an asynchronous program have an event loop that runs already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import plotly.graph_objects as go
from kaleido import Kaleido
from kaleido.errors import BrowserClosedError, BrowserFailedError, ChromeNotFoundError, KaleidoError

from hpo.errors import HpoError

WIDTH, HEIGHT, SCALE = 1200, 700, 2
"""In pixels, where a figure has no size of its own, and how many dots of the file make one."""

FIGURE_S = 60.0


def pngs(figures: Iterable[go.Figure]) -> list[bytes]:
    """Return each figure as the bytes of a PNG. Raises HpoError where no browser is there, or where it fails."""
    try:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(lambda: asyncio.run(_drawn(list(figures)))).result()
    except ChromeNotFoundError as error:
        raise HpoError(
            "PNG: needs Chrome or Chromium, and none is there: `apt install chromium`, or `plotly_get_chrome`; "
            "one that is not on PATH goes into BROWSER_PATH; a page (.html, --format html) needs none"
        ) from error
    except (BrowserFailedError, BrowserClosedError, KaleidoError, OSError, RuntimeError) as error:
        first = str(error.args[0]) if error.args else type(error).__name__  # the others advise Python programmers
        said = " ".join(first.split())[:200].rstrip(".")
        raise HpoError(f"PNG: the browser failed ({said}); --format html needs none") from error


async def _drawn(figures: list[go.Figure]) -> list[bytes]:
    images = []
    async with Kaleido(timeout=FIGURE_S, mathjax=False) as browser:  # which would come from the network
        for figure in figures:
            options = {
                "format": "png",
                "width": figure.layout.width or WIDTH,
                "height": figure.layout.height or HEIGHT,
                "scale": SCALE,
            }
            images.append(await browser.calc_fig(figure, opts=options))
    return images
