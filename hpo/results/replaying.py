"""Repeating a trial from its export alone: the file, the data set, and nothing else.

The export says which images, which settings and which seed; the result says how far it is from what was exported.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo.data import Split
from hpo.errors import HpoError, UsageError
from hpo.results.export import VERSION
from hpo.results.ranking import METRIC_LABELS
from hpo.results.repeating import Repeated, Stored, repeat
from hpo.search.plan import plan
from hpo.studyfile import Study, parse_study
from hpo.studyfile.reading import EXPORT, load_tree
from hpo.training.stack import Member


@dataclass(frozen=True)
class Replay:
    """A study of the exported trial, and how it came out: once, or for a confirmed one under each of its seeds."""

    study: Study
    runs: tuple[Repeated, ...]


def replay(path: Path, device: str, stop: threading.Event, say: Callable[[str], None]) -> Replay:
    """Train what an export describes.

    Raises UsageError for a file that is no export, DataError and HpoError where the images are missing or others, and
    InterruptionError where `stop` is set.
    """
    exported = _read(path)
    study = parse_study(exported["config"], str(path))
    planned = plan(study, device)
    _check_data(study, planned.images, exported["data"])
    config = study.config({})
    seeds = {exported["seed"]: (exported["value"], exported.get("curve") or {})}
    if confirmed := exported.get("confirmed"):
        seeds = {seed: (score, {}) for seed, score in zip(confirmed["seeds"], confirmed["scores"], strict=True)}
    trials = [
        Stored(Member(number, config, seed), score, curve)
        for number, (seed, (score, curve)) in enumerate(seeds.items())
    ]
    return Replay(study, tuple(repeat(study, planned, exported["precision"], trials, stop, say)))


def replay_lines(found: Replay) -> list[str]:
    """Return what came of each run, and the largest difference."""
    label = METRIC_LABELS[found.study.search.metric]
    lines = []
    for run in found.runs:
        line = f"{label} {run.score:.6g}, exported {run.stored:.6g}, difference {run.difference:.2g}"
        differences = ", ".join(f"{metric} {value:.2g}" for metric, value in run.largest.items())
        lines.append(f"{line}; largest in any epoch: {differences}" if differences else line)
    return lines


def replay_text(found: Replay) -> str:
    """Return the same as a JSON object."""
    record = {
        "study": found.study.name,
        "metric": found.study.search.metric,
        "runs": [
            {"score": run.score, "exported": run.stored, "difference": run.difference, "largest": dict(run.largest)}
            for run in found.runs
        ],
    }
    return json.dumps(record, allow_nan=False)


def _read(path: Path) -> dict[str, Any]:
    tree = load_tree(path)
    name = str(tree.get("schema")) if isinstance(tree, dict) else ""
    version = name.removeprefix(EXPORT)
    if not name.startswith(EXPORT) or not version.isdecimal():
        raise UsageError(f"{path}: is no export; `hpo export NAME -o best.json` writes one")
    if int(version) > VERSION:
        raise UsageError(f"{path}: is written by a newer hpo ({name}); this one reads up to {EXPORT}{VERSION}")
    missing = [key for key in ("config", "seed", "value", "data", "precision") if key not in tree]
    if missing:
        raise UsageError(f"{path}: is an export without {missing[0]}")
    return dict(tree)


def _check_data(study: Study, split: Split, exported: Mapping[str, Any]) -> None:
    known = {"sha256": split.content_sha256, "split_sha256": split.split_sha256}
    if any(exported.get(key) != value for key, value in known.items()):
        raise HpoError(
            f"{study.source}: the images of {split.dataset} here are not those that it was trained on "
            "(their SHA-256 differs); bring those, for with others it is another trial"
        )
