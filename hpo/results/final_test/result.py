"""The result of a test evaluation: its JSON (`hpo.test/2`, see test.schema.json), its text, and its files.

Trains and evaluates nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hpo.data.examples import describe_classes
from hpo.files import write_atomically
from hpo.results.export.best import best_config
from hpo.results.figures.confusion import confusion, label_counts
from hpo.results.figures.files import page
from hpo.results.figures.predicted import predicted_against_true
from hpo.results.final_test.checkpoint import Trained
from hpo.results.final_test.model_card import CARD, CARD_FILE
from hpo.results.final_test.model_folder import WEIGHTS_FILE
from hpo.results.final_test.study_metric import measure_label
from hpo.results.output import Result
from hpo.results.selection import Selection
from hpo.results.trivial_baseline import PREDICTIONS
from hpo.storage.test_evaluations import Evaluation, main_score
from hpo.studyfile import Study
from hpo.text import json_text
from hpo.versions import provenance

SCHEMA = "hpo.test/2"
RESULT_FILE, FIGURE_FILE, PREDICTED_FILE = "result.json", "confusion.html", "predicted.html"


class Tested(NamedTuple):
    """A test evaluation: its result, `hpo.test/2`, and the folder with the result, the weights and the figure."""

    result: dict[str, Any]
    folder: Path


def result_tree(
    study: Study,
    data: Mapping[str, Any],
    selected: Selection,
    trained: Trained,
    weights_sha256: str,
    evaluation: int,
    scores: Mapping[str, Any],
    code: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the result of the test evaluation of that number with these scores.

    `data` and `code` are the study's records of its data and of the user's code.
    """
    separate = ("subnetworks", "sha256")
    return {
        "schema": SCHEMA,
        "study": study.name,
        "trial": selected.trial,
        "why": selected.why,
        "metric": study.search.first_metric,
        "score": selected.score,
        "params": selected.params,
        "config": best_config(study, selected.config, trained.precision),
        "weights": {
            "file": WEIGHTS_FILE,
            "sha256": weights_sha256,
            "from_checkpoint": trained.from_checkpoint,
            "epochs": trained.epochs,
            "images": trained.examples,
            "seed": trained.seed,
        },
        "precision": trained.precision,
        "device": trained.device,
        "look": evaluation,
        "looks": evaluation,
        "test": {key: value for key, value in scores.items() if key not in separate},
        "subnetworks": scores["subnetworks"],
        "data": {**data, "test": scores["images"], "test_sha256": scores["sha256"]},
        **({} if code is None else {"code": dict(code)}),
        **provenance(),
    }


def write_files(folder: Path, result: dict[str, Any], input_format: Mapping[str, Any], task: str) -> None:
    """Write the result, the figure of the task and the model card, with the keys of `input_format`, to the folder."""
    scores = result["test"]
    brief = {key: value for key, value in scores.items() if key not in ("classes", "confusion", "labels", "pairs")}
    card = {**result, "schema": CARD, **input_format, "test": brief}
    title = f"{scores['images']:,} test examples, {main_score(scores)}"
    if task == "regression":
        figure, name = predicted_against_true(result["study"], scores["pairs"], title), PREDICTED_FILE
    elif task == "multilabel":
        figure, name = label_counts(result["study"], scores["labels"], title), FIGURE_FILE
    else:
        names = [each["name"] for each in scores["classes"]]
        figure, name = confusion(result["study"], scores["confusion"], names, title), FIGURE_FILE
    write_atomically(json_text(result, indent=2) + "\n", folder / RESULT_FILE)
    write_atomically(json_text(card, indent=2) + "\n", folder / CARD_FILE)
    write_atomically(page(figure, f"{result['study']}: {Path(name).stem}"), folder / name)


class SealedTestResult(Result[Tested]):
    """A test evaluation as text and as JSON."""

    def tree(self) -> dict[str, Any]:
        """Return the result, `hpo.test/2`."""
        return self.found.result

    def lines(self) -> list[str]:
        """Return the accuracy with its interval, the configuration, and the folder."""
        result = self.found.result
        scores, weights = result["test"], result["weights"]
        trained = "a checkpoint of" if weights["from_checkpoint"] else "trained on"
        lines = [
            f"{result['study']}: test {_scores_text(scores)}, on {scores['images']:,} examples",
            f"{result['why']}; {trained} {weights['images']:,} examples, epoch {weights['epochs']}",
        ]
        if trivial := scores.get("trivial"):
            lines.append(f"trivial baseline: {_measures_text(trivial)} ({_predictions(scores)})")
        if (sub := result["subnetworks"]) is not None:
            lines.append(
                f"mean of {sub['count']} random sub-networks: {_measures_text(sub['mean'])}; one by itself: "
                f"{_measures_text(sub['single'])}; the mean's {_predicted(scores)} differ from the whole network's by "
                f"{sub['difference']:.4f} on average"
            )
        if absent := [each["name"] for each in scores.get("classes", ()) if not each["images"]]:
            lines.append(f"no test example of {describe_classes(absent)}")
        if result["looks"] > 1:
            lines.append(f"evaluation {result['look']} on this test set: repeated testing biases the estimate")
        return [*lines, f"folder: {self.found.folder}"]


def evaluation_lines(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return a line for each test evaluation that a study has started; those without a result do not count."""
    return [_evaluation_line(each) for each in evaluations]


def _evaluation_line(evaluation: Evaluation) -> str:
    which, result = f"{evaluation['at']}, trial {evaluation['trial']}", evaluation["result"]
    if result is None:
        return f"not counted, {which}: no result ({evaluation.get('failed', 'it did not finish')})"
    return f"evaluation {evaluation['look']}, {which}: {_scores_text(result)}"


def _scores_text(scores: Mapping[str, Any]) -> str:
    parts, metric = [], scores.get("metric")
    if metric is not None:
        parts.append(f"{metric['name']} {_number(metric['value'])}{_interval_text(metric['interval'])}")
    if "accuracy" in scores:
        parts.append(f"accuracy {scores['accuracy']:.4f}{_interval_text(scores['interval'])}")
    shown = None if metric is None else metric["name"]
    others = {measure_label(name): value for name, value in scores.get("metrics", {}).items()}
    parts += [f"{name} {_number(value)}" for name, value in others.items() if name != shown]
    return ", ".join([*parts, f"loss {scores['loss']:.4f}"])


def _measures_text(measures: Mapping[str, float | None]) -> str:
    return ", ".join(f"{measure_label(name)} {_number(value)}" for name, value in measures.items())


def _predictions(scores: Mapping[str, Any]) -> str:
    """Return the predictions of the trivial baseline in words."""
    if "accuracy" in scores:
        return PREDICTIONS["classification"]
    return PREDICTIONS["multilabel"] if "labels" in scores else f"{PREDICTIONS['regression']}, for mae their median"


def _predicted(scores: Mapping[str, Any]) -> str:
    return "predictions" if "pairs" in scores else "probabilities"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _interval_text(interval: Mapping[str, float] | None) -> str:
    return "" if interval is None else f" (95% interval {interval['low']:.4f} to {interval['high']:.4f})"
