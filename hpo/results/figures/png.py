"""PNG figures, drawn by an installed Chrome or Chromium: nothing is downloaded, and only the figure is opened.

The browser is started once for all figures and ends with them. It is the first one on PATH, or that of BROWSER_PATH. A
thread of its own drives it, because a notebook or an asynchronous program already runs an event loop.
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
"""Default size in pixels, and the scale factor of the file."""

FIGURE_S = 60.0


def pngs(figures: Iterable[go.Figure]) -> list[bytes]:
    """Return the figures as PNG bytes. Raises HpoError without a browser, or where the browser fails."""
    try:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(lambda: asyncio.run(_drawn(list(figures)))).result()
    except ChromeNotFoundError as error:
        raise HpoError(
            "PNG: no Chrome or Chromium found: `apt install chromium`, or `plotly_get_chrome`; set BROWSER_PATH for a "
            "browser that is not on PATH, or use .html (--format html), which needs no browser"
        ) from error
    except (BrowserFailedError, BrowserClosedError, KaleidoError, OSError, RuntimeError) as error:
        first = str(error.args[0]) if error.args else type(error).__name__  # the others are advice for programmers
        reason = " ".join(first.split())[:200].rstrip(".")
        raise HpoError(f"PNG: the browser failed ({reason}); --format html needs no browser") from error


async def _drawn(figures: list[go.Figure]) -> list[bytes]:
    images = []
    async with Kaleido(timeout=FIGURE_S, mathjax=False) as browser:  # mathjax would be downloaded
        for figure in figures:
            options = {
                "format": "png",
                "width": figure.layout.width or WIDTH,
                "height": figure.layout.height or HEIGHT,
                "scale": SCALE,
            }
            images.append(await browser.calc_fig(figure, opts=options))
    return images
