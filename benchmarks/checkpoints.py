"""Benchmark of training checkpoints: the CPU time of a search that writes them, against one that does not, in turn.

    python benchmarks/checkpoints.py --rounds 15 --pruner halving

The searches are equal: 32 trials of the digits study, 30 epochs, in populations of 16. "none" writes no checkpoint,
"auto" is the default, 1 writes all members after every epoch. CPU time, because other processes disturb the time of
the clock more than checkpoints do. The table has means, minimum and quartiles, the ratio of the means to that of
"none", and the quartiles of the ratios round by round.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import threading
import time

from hpo.search.launch import launch
from hpo.storage import open_storage
from hpo.studyfile import parse_study

SETTINGS = ("none", "auto", "1")


def cpu_seconds(checkpoint: str, pruner: str) -> float:
    """Search once; return the CPU seconds of this process."""
    study = parse_study(
        {
            "name": "checkpoints",
            "data": {"dataset": "digits", "validation": 0.2},
            "network": {"kind": "mlp", "hidden": [64, 64], "batch_norm": True},
            "optimizer": {"kind": "adam", "lr": {"low": 1e-4, "high": 1e-1, "log": True}},
            "training": {
                "epochs": 30,
                "batch_size": 64,
                "precision": "float32",
                "checkpoint": int(checkpoint) if checkpoint == "1" else checkpoint,
            },
            "search": {"trials": 32, "sampler": "random", "pruner": pruner, "population": 16},
        },
        "benchmark",
    )
    with tempfile.TemporaryDirectory() as folder:
        storage = open_storage(f"sqlite:///{folder}/hpo.db")
        start = time.process_time()
        launch(study, storage, on_event=lambda event: None, stop=threading.Event())
        seconds = time.process_time() - start
        storage.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--pruner", choices=("none", "halving"), default="none")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    arguments = parser.parse_args()
    rounds, pruner, settings = arguments.rounds, arguments.pruner, arguments.settings
    cpu_seconds("none", pruner)  # imports and caches
    spent: dict[str, list[float]] = {setting: [] for setting in settings}
    for number in range(rounds):
        for setting in settings if number % 2 else reversed(settings):
            spent[setting].append(cpu_seconds(setting, pruner))
    print(f"{platform.machine()}, Python {platform.python_version()}, {rounds} rounds in turn, pruner {pruner}")
    heading = f"{'checkpoint':10} {'mean s':>8} {'min':>8} {'25%':>8} {'50%':>8} {'75%':>8} {'ratio of means':>15}"
    print(f"{heading}  quartiles of the ratios")
    for setting, seconds in spent.items():
        low, middle, high = statistics.quantiles(seconds, n=4)
        ratio = statistics.mean(seconds) / statistics.mean(spent["none"])
        cells = [statistics.mean(seconds), min(seconds), low, middle, high]
        ratios = [each / none for each, none in zip(seconds, spent["none"], strict=True)]
        quartiles = " ".join(f"{each:.3f}" for each in statistics.quantiles(ratios, n=4))
        print(f"{setting:10} " + " ".join(f"{each:8.2f}" for each in cells) + f" {ratio:15.3f}  {quartiles}")


if __name__ == "__main__":
    main()
