"""Renew docs/mlflow.png: learning curves of a study's best trials in MLflow, in Chromium.

    python docs/mlflow_picture.py              (some minutes)

Starts an MLflow server in a temporary folder, and searches studies/digits.toml with `--track mlflow`. Look at the
picture before it is committed: a new version of MLflow may draw the page differently.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs/mlflow.png"
HPO = str(Path(sys.executable).with_name("hpo"))
PORT = 5918
URL = f"http://127.0.0.1:{PORT}"
WIDTH, HEIGHT = 1600, 1120
NAVIGATION = 200
"""Pixels at the left of the page that are left out."""

ASSISTANT = "button[aria-label*='close' i]"
COLOURS = 96
START_S = 180.0
CHARTS = ".js-plotly-plot"


def serve(folder: Path) -> subprocess.Popen[bytes]:
    """Start an MLflow server; return its process once it answers."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(PORT), "--workers", "1"]
    process = subprocess.Popen([*command, "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"], cwd=folder)
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(f"{URL}/health", timeout=5).close()  # noqa: S310 - the server of this script
        except OSError:
            time.sleep(0.5)
        else:
            return process
    process.terminate()
    raise SystemExit("the MLflow server does not answer")


def take(picture: Path, experiment: int = 1) -> None:
    """Write a picture of the experiment's charts."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}).new_page()
        page.set_default_timeout(400_000)
        try:
            page.goto(f"{URL}/#/experiments/{experiment}/runs?compareRunsMode=CHART")
            page.wait_for_selector(CHARTS)
            if page.locator(ASSISTANT).count():  # a panel beside the charts
                page.locator(ASSISTANT).last.click()
            page.wait_for_timeout(8000)  # the curves are read one after the other
            page.screenshot(path=picture, clip={"x": NAVIGATION, "y": 0, "width": WIDTH - NAVIGATION, "height": HEIGHT})
        finally:
            browser.close()
    Image.open(picture).convert("RGB").quantize(COLOURS).save(picture, optimize=True)


def main() -> None:
    """Search the study, and take the picture."""
    os.environ |= {
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "0",
    }
    with tempfile.TemporaryDirectory() as folder:
        server = serve(Path(folder))
        try:
            command = [HPO, "launch", str(ROOT / "studies/digits.toml"), "--quiet", "--track", f"mlflow:{URL}"]
            subprocess.run(command, check=True, cwd=folder)
            take(PICTURE)
        finally:
            server.terminate()
            server.wait()
    print(PICTURE)


if __name__ == "__main__":
    main()
