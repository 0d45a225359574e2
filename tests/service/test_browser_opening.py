"""Tests of `hpo dashboard` opening a browser: on a desktop only, and never one that uses the terminal."""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path

import pytest

from hpo.cli import main
from hpo.service.dashboard import browser, dashboard
from hpo.service.dashboard.browser import has_browser, open_browser
from hpo.storage import Storage

DESKTOP = {"DISPLAY": ":0"}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the addresses that a browser was asked to open; the process has a desktop and a terminal."""
    addresses: list[str] = []
    monkeypatch.setattr(webbrowser, "get", lambda: webbrowser.BackgroundBrowser("firefox"))
    monkeypatch.setattr(webbrowser, "open", addresses.append)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    for name in (*browser.REMOTE, *browser.DISPLAYS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    return addresses


def opens(url: str) -> None:
    if thread := open_browser(url):
        thread.join()


def test_a_desktop_has_a_browser(opened: list[str]) -> None:
    opens("http://127.0.0.1:1/")
    assert opened == ["http://127.0.0.1:1/"]


@pytest.mark.parametrize("name", browser.REMOTE)
def test_over_ssh_there_is_none(opened: list[str], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1.2.3.4 5 6.7.8.9 22")
    opens("http://127.0.0.1:1/")
    assert opened == []


def test_without_a_display_or_a_terminal_there_is_none(opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_browser({}, "linux")
    assert has_browser({}, "darwin")
    assert has_browser({"WAYLAND_DISPLAY": "wayland-0"}, "linux")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    opens("http://127.0.0.1:1/")
    assert opened == []


def test_a_browser_of_the_terminal_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webbrowser, "get", lambda: webbrowser.GenericBrowser("/usr/bin/lynx"))
    assert not has_browser(DESKTOP, "linux")
    monkeypatch.setattr(webbrowser, "get", lambda: webbrowser.GenericBrowser("wslview"))
    assert has_browser(DESKTOP, "linux")

    def nothing() -> None:
        raise webbrowser.Error

    monkeypatch.setattr(webbrowser, "get", nothing)
    assert not has_browser(DESKTOP, "linux")


def test_a_browser_that_cannot_start_changes_nothing(opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(url: str) -> None:
        raise OSError("no such file")

    monkeypatch.setattr(webbrowser, "open", broken)
    opens("http://127.0.0.1:1/")


@pytest.mark.parametrize(
    ("options", "count"),
    [([], 1), (["--no-browser"], 0), (["--host", "0.0.0.0", "--insecure-no-auth"], 0)],
)
def test_the_command_opens_it_on_this_machines_own_address(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], count: int
) -> None:
    addresses: list[str] = []
    monkeypatch.delenv(dashboard.VARIABLE, raising=False)
    monkeypatch.setattr(dashboard, "open_browser", addresses.append)
    monkeypatch.setattr(dashboard.Server, "run", lambda server: None)
    url = f"sqlite:///{tmp_path / 'hpo.db'}"
    assert main(["dashboard", "--port", "0", "--storage", url, *options]) == 0
    assert len(addresses) == count
