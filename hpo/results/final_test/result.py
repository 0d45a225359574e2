"""The result of a look at the test set: as JSON (`hpo.test/1`, described by test.schema.json), as lines, and in files.

Knows nothing of how the network was trained or the images read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hpo.data.examples import describe_classes
from hpo.files import write_atomically
from hpo.results.export.best import best_config
from hpo.results.figures.confusion import confusion
from hpo.results.figures.files import page
from hpo.results.final_test.checkpoint import Trained
from hpo.results.final_test.model_card import CARD, CARD_FILE
from hpo.results.final_test.model_folder import WEIGHTS_FILE
from hpo.results.result import Result
from hpo.results.selection import Selection
from hpo.storage.test_evaluations import Evaluation
from hpo.studyfile import Study
from hpo.text import json_text
from hpo.versions import provenance

SCHEMA = "hpo.test/1"
RESULT_FILE, FIGURE_FILE = "result.json", "confusion.html"


class Tested(NamedTuple):
    """A test evaluation: its result, `hpo.test/1`, and the folder with the result, the weights and the figure."""

    result: dict[str, Any]
    folder: Path


def result_of(
    study: Study,
    data: Mapping[str, Any],
    selected: Selection,
    trained: Trained,
    weights_sha256: str,
    look: int,
    saw: Mapping[str, Any],
    code: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the result of the look of that number, which `saw` this.

    `code` is the record of the user's own code that it ran.
    """
    apart = ("subnetworks", "sha256")
    return {
        "schema": SCHEMA,
        "study": study.name,
        "trial": selected.trial,
        "why": selected.why,
        "metric": study.search.first_metric,
        "score": selected.score,
        "params": selected.params,
        "config": best_config(study, selected.params, trained.precision),
        "weights": {
            "file": WEIGHTS_FILE,
            "sha256": weights_sha256,
            "from_checkpoint": trained.checkpoint,
            "epochs": trained.epochs,
            "images": trained.images,
            "seed": trained.seed,
        },
        "precision": trained.precision,
        "device": trained.device,
        "look": look,
        "looks": look,
        "test": {key: value for key, value in saw.items() if key not in apart},
        "subnetworks": saw["subnetworks"],
        "data": {**data, "test": saw["images"], "test_sha256": saw["sha256"]},
        **({} if code is None else {"code": dict(code)}),
        **provenance(),
    }


def fill(folder: Path, result: dict[str, Any], form: Mapping[str, Any]) -> None:
    """Write the result, its figure, and a card for who uses the weights: `form` is that of the images."""
    found = result["test"]
    brief = {key: value for key, value in found.items() if key not in ("classes", "confusion")}
    card = {**result, "schema": CARD, "input": dict(form), "test": brief}
    title = f"{found['images']:,} test images, accuracy {found['accuracy']:.4f}"
    names = [each["name"] for each in found["classes"]]
    figure = confusion(result["study"], found["confusion"], names, title)
    write_atomically(json_text(result, indent=2) + "\n", folder / RESULT_FILE)
    write_atomically(json_text(card, indent=2) + "\n", folder / CARD_FILE)
    write_atomically(page(figure, f"{result['study']}: confusion"), folder / FIGURE_FILE)


class SealedTestResult(Result[Tested]):
    """A test evaluation as text and as JSON."""

    def tree(self) -> dict[str, Any]:
        """Return the result, `hpo.test/1`."""
        return self.found.result

    def lines(self) -> list[str]:
        """Return the accuracy with its interval, the configuration, and the folder."""
        result = self.found.result
        found, weights = result["test"], result["weights"]
        low, high = found["interval"]["low"], found["interval"]["high"]
        how = "a checkpoint of" if weights["from_checkpoint"] else "trained on"
        lines = [
            f"{result['study']}: test accuracy {found['accuracy']:.4f} (95% interval {low:.4f} to {high:.4f}), "
            f"loss {found['loss']:.4f}, on {found['images']:,} images",
            f"trial {result['trial']}, {result['why']}; {how} {weights['images']:,} images, epoch {weights['epochs']}",
        ]
        if (sub := result["subnetworks"]) is not None:
            mean, single = sub["mean"], sub["single"]
            lines.append(
                f"mean of {sub['count']} random sub-networks: accuracy {mean['accuracy']:.4f}, loss {mean['loss']:.4f}"
                f"; one by itself: accuracy {single['accuracy']:.4f}, loss {single['loss']:.4f}; "
                f"the mean's probabilities differ from the whole network's by {sub['difference']:.4f} on average"
            )
        if absent := [each["name"] for each in found["classes"] if not each["images"]]:
            lines.append(f"no test image of {describe_classes(absent)}")
        if result["looks"] > 1:
            lines.append(f"look {result['look']} at this test set: each look makes its figure less honest")
        return [*lines, f"folder: {self.found.folder}"]


def look_lines(looks: Sequence[Evaluation]) -> list[str]:
    """Return a line a look that a study has begun, for people; one that came to nothing is none."""
    return [f"{_which(look)}, {look['at']}, trial {look['trial']}: {_seen(look)}" for look in looks]


def _which(look: Evaluation) -> str:
    return "no look" if look["result"] is None else f"look {look['look']}"


def _seen(look: Evaluation) -> str:
    result = look["result"]
    if result is None:
        return f"it began, and nothing was seen ({look.get('failed', 'it did not get to a result')})"
    interval = f"{result['interval']['low']:.4f} to {result['interval']['high']:.4f}"
    return f"accuracy {result['accuracy']:.4f} (95% interval {interval}), loss {result['loss']:.4f}"
