"""Trained networks and exported trials, from their files alone: no storage is needed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from hpo.api.answers import Say, warn
from hpo.api.stopping import stopping

if TYPE_CHECKING:
    from hpo.results.final_test.predict import Predictions
    from hpo.results.reproduce.replay import Replay
    from hpo.results.result import Result


def replay(
    file: str | Path, *, device: str = "auto", say: Say = warn, stop: threading.Event | None = None
) -> Result[Replay]:
    """Train the trial of an export again; return how far it is from what was exported.

    Raises UsageError for a file that is no export, DataError and HpoError where the images are missing or others, and
    InterruptionError when stopped.
    """
    from hpo.results.reproduce.replay import ReplayResult, replay

    with stopping(stop) as asked:
        return ReplayResult(replay(Path(file), device, asked, say))


def predict(folder: str | Path, images: str | Path, *, device: str = "auto") -> Predictions:
    """Classify the images of a .npy file with the network that `test` has put into a folder.

    Images are [N, H, W], [N, C, H, W] or [N, H, W, C], uint8 as in the data set, or floats from 0, black, to 1, white;
    for a network that was trained on floats as given, such floats. The answer has arrays `classes` and `probabilities`,
    [N], and `names` of the classes; `str()` of it is CSV. Raises HpoError for files that are neither.
    """
    from hpo.results.final_test.predict import predictions

    return predictions(Path(folder), Path(images), device)
