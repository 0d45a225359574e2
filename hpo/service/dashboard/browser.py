"""Open a page in the user's browser, where there is one: never over SSH, without a display, or from a script.

The browser is opened by a thread of its own, and whether it succeeds changes nothing: the address is printed anyway.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import webbrowser
from collections.abc import Mapping

REMOTE = ("SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY")
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")
IN_TERMINAL = ("www-browser", "links", "elinks", "lynx", "w3m")
"""Browsers that `webbrowser` knows and that would take over the terminal."""


def open_browser(url: str) -> threading.Thread | None:
    """Open the page if `has_browser`, in the returned thread; otherwise return None."""
    if not (sys.stdout.isatty() and has_browser(os.environ, sys.platform)):
        return None
    thread = threading.Thread(target=_open, args=(url,), daemon=True)
    thread.start()
    return thread


def has_browser(environ: Mapping[str, str], platform: str) -> bool:
    """Return whether this process has a desktop to show a browser on, and one that does not use the terminal."""
    if any(environ.get(name) for name in REMOTE):
        return False
    if platform not in ("darwin", "win32") and not any(environ.get(name) for name in DISPLAYS):
        return False
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return False
    return os.path.basename(getattr(browser, "name", "")) not in IN_TERMINAL


def _open(url: str) -> None:
    with contextlib.suppress(webbrowser.Error, OSError):  # the address is on the terminal
        webbrowser.open(url)
