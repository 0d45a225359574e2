"""Networks of `hpo test` and exported trials, used from their files alone: no storage is needed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from hpo.api.displays import PrintLine, print_warning
from hpo.api.interruption import stop_event

if TYPE_CHECKING:
    from hpo.results.final_test.predict import Predictions, TargetPredictions
    from hpo.results.output import Result
    from hpo.results.reproduce.replay import Replay


def replay(
    file: str | Path, *, device: str = "auto", say: PrintLine = print_warning, stop: threading.Event | None = None
) -> Result[Replay]:
    """Retrain the trial of an export; return how far its curves are from the exported ones.

    `say` gets warnings. Raises UsageError for a file that is no export, DataError and HpoError where the data set is
    missing or has changed, and InterruptionError when stopped.
    """
    from hpo.results.reproduce.replay import ReplayResult, replay

    with stop_event(stop) as stop:
        return ReplayResult(replay(Path(file), device, stop, say))


def predict(folder: str | Path, images: str | Path, *, device: str = "auto") -> Predictions | TargetPredictions:
    """Classify the examples of the .npy file or table `images` with the network in a folder that `test` wrote.

    A table is a .csv or .parquet file with the feature columns of the training table, in any order.
    Images are [N, H, W], [N, C, H, W] or [N, H, W, C], uint8 as in the data set, or floats from 0, black, to 1, white.
    A network that was trained on unscaled floats or on integers takes such numbers; rows of a table are [N, features].
    The result has arrays `classes` and `probabilities`, [N], and `names` of the classes; `str()` of it is CSV. Of a
    table it has `rows`, the numbers of the rows in its file. Of a regression or several labels it has `values`,
    [N, columns], and `names` of the columns. Raises HpoError for invalid files.
    """
    from hpo.results.final_test.predict import predictions

    return predictions(Path(folder), Path(images), device)
