"""Renew docs/dashboard.png: the page of a searched, confirmed and tested study in the dashboard, in Chromium.

    python docs/dashboard_picture.py              (some minutes)
    python docs/dashboard_picture.py --storage sqlite:///hpo.db --study digits

Look at the picture before it is committed: a new version of optuna-dashboard may draw the page differently.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs/dashboard.png"
HPO = str(Path(sys.executable).with_name("hpo"))
WIDTH, HEIGHT = 1600, 1000
LAST = "Study User Attributes"
"""The heading of the last card of the page in the picture."""

DRAWN = "ids => ids.every(id => document.getElementById(id)?.data?.length)"
GRAPHS = ["plot-history", "graph-hyperparameter-importances", "graph-timeline"]
OURS = ["user-defined-plot:hpo-landscape", "user-defined-plot:hpo-curves"]


def search(url: str) -> None:
    """Search, confirm and test the study of the digits in a new storage."""
    for command in (
        ["launch", str(ROOT / "studies/digits.toml"), "--quiet"],
        ["confirm", "digits"],
        ["test", "digits"],
    ):
        subprocess.run([HPO, *command, "--storage", url], check=True, cwd=Path(url.removeprefix("sqlite:///")).parent)


def take(url: str, study: str, picture: Path) -> None:
    """Write a picture of the study's page, down to its user attributes."""
    command = [HPO, "dashboard", "--no-browser", "--port", "0", "--read-only", "--storage", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}).new_page()
        page.set_default_timeout(180_000)
        try:
            page.goto(f"{address}dashboard/studies/{study_id(address, study)}")
            page.wait_for_function(DRAWN, arg=[*GRAPHS, *OURS])
            card = page.locator(".MuiCard-root", has_text=LAST)
            place = card.bounding_box()
            assert place is not None
            page.set_viewport_size({"width": WIDTH, "height": round(place["y"] + place["height"] + 20)})
            page.wait_for_timeout(5000)  # the figures are drawn again
            page.screenshot(path=picture)
        finally:
            browser.close()
            server.terminate()


def study_id(address: str, study: str) -> int:
    """Return the id of the study of that name."""
    with urllib.request.urlopen(f"{address}api/studies") as answer:  # noqa: S310 - the server of this script
        studies = json.load(answer)["study_summaries"]
    return next(int(each["study_id"]) for each in studies if each["study_name"] == study)


def main() -> None:
    """Write the picture of a study of the given storage, or of one that is searched now."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", help="URL of a storage with a finished study; without it, one is searched")
    parser.add_argument("--study", default="digits")
    given = parser.parse_args()
    if given.storage is not None:
        take(given.storage, given.study, PICTURE)
        return
    with tempfile.TemporaryDirectory(prefix="hpo-picture-") as folder:
        url = f"sqlite:///{folder}/hpo.db"
        search(url)
        take(url, given.study, PICTURE)


if __name__ == "__main__":
    main()
