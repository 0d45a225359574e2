"""The result of a test evaluation: its JSON, its text, and its files.

    hpo.test/2           of one network (test.schema.json)
    hpo.ensemble_test/1  of the ensemble of a study (ensemble_test.schema.json)

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
from hpo.results.final_test.model_card import CARD, CARD_FILE, ENSEMBLE_CARD
from hpo.results.final_test.study_metric import measure_label
from hpo.results.final_test.subject import Subject
from hpo.results.output import Result
from hpo.results.selection import Selection
from hpo.results.trivial_baseline import PREDICTIONS
from hpo.results.weights.checkpoint import Trained
from hpo.storage.test_evaluations import Evaluation, main_score, subject_of
from hpo.studyfile import Study
from hpo.text import join_and, json_text
from hpo.versions import provenance

SCHEMA, ENSEMBLE_SCHEMA = "hpo.test/2", "hpo.ensemble_test/1"
RESULT_FILE, FIGURE_FILE, PREDICTED_FILE = "result.json", "confusion.html", "predicted.html"


class Tested(NamedTuple):
    """A test evaluation: its result, `hpo.test/2`, and the folder with the result, the weights and the figure."""

    result: dict[str, Any]
    folder: Path


def result_tree(
    study: Study,
    data: Mapping[str, Any],
    subject: Subject,
    trained: Sequence[Trained],
    weights_sha256: Sequence[str],
    evaluation: int,
    scores: Mapping[str, Any],
    code: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the result of the test evaluation of that number with these scores.

    `trained` and `weights_sha256` are those of each member of the subject. `data` and `code` are the study's records of
    its data and of the user's code.
    """
    members = [
        _member_tree(study, subject, *each) for each in zip(subject.members, trained, weights_sha256, strict=True)
    ]
    separate = ("subnetworks", "sha256")
    return {
        **_subject_tree(study, subject, members),
        "look": evaluation,
        "looks": evaluation,
        "test": {key: value for key, value in scores.items() if key not in separate},
        **({"subnetworks": scores["subnetworks"]} if subject.ensemble is None else {}),
        "data": {**data, "test": scores["images"], "test_sha256": scores["sha256"]},
        **({} if code is None else {"code": dict(code)}),
        **provenance(),
    }


def _subject_tree(study: Study, subject: Subject, members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fields of a result that name what was tested."""
    if subject.ensemble is None:
        why = {"why": subject.members[0].why, "metric": study.search.first_metric}
        first = ("trial", "score", "params", "config", "weights", "precision", "device")
        return {"schema": SCHEMA, "study": study.name, **why, **{key: members[0][key] for key in first}}
    found = subject.ensemble
    picks = [{"trial": each.trial, "picks": each.picks, "weight": found.weight(each)} for each in found.members]
    return {
        "schema": ENSEMBLE_SCHEMA,
        "study": study.name,
        "why": f"{found.title}, selected among {found.candidates} trials with stored weights",
        "metric": found.metric,
        "score": found.score,
        "members": [{**pick, **member} for pick, member in zip(picks, members, strict=True)],
    }


def _member_tree(
    study: Study, subject: Subject, selected: Selection, trained: Trained, weights_sha256: str
) -> dict[str, Any]:
    return {
        "trial": selected.trial,
        "score": selected.score,
        "params": selected.params,
        "config": best_config(study, selected.config, trained.precision),
        "weights": {
            "file": subject.weights_file(selected),
            "sha256": weights_sha256,
            "from_checkpoint": trained.from_checkpoint,
            "epochs": trained.epochs,
            "images": trained.examples,
            "seed": trained.seed,
        },
        "precision": trained.precision,
        "device": trained.device,
    }


def write_files(folder: Path, result: dict[str, Any], input_format: Mapping[str, Any], task: str) -> None:
    """Write the result, the figure of the task and the model card, with the keys of `input_format`, to the folder."""
    scores = result["test"]
    brief = {key: value for key, value in scores.items() if key not in ("classes", "confusion", "labels", "pairs")}
    schema = CARD if result["schema"] == SCHEMA else ENSEMBLE_CARD
    card = {**result, "schema": schema, **input_format, "test": brief}
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
        """Return the result, `hpo.test/2` or `hpo.ensemble_test/1`."""
        return self.found.result

    def lines(self) -> list[str]:
        """Return the accuracy with its interval, the configuration, and the folder."""
        result = self.found.result
        scores = result["test"]
        lines = [
            f"{result['study']}: test {_scores_text(scores)}, on {scores['images']:,} examples",
            f"{result['why']}; {_training_text(result)}",
        ]
        if trivial := scores.get("trivial"):
            lines.append(f"trivial baseline: {_measures_text(trivial)} ({_predictions(scores)})")
        if (sub := result.get("subnetworks")) is not None:
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
    which, result = f"{evaluation['at']}, {subject_of(evaluation)}", evaluation["result"]
    if result is None:
        return f"not counted, {which}: no result ({evaluation.get('failed', 'it did not finish')})"
    return f"evaluation {evaluation['look']}, {which}: {_scores_text(result)}"


def _training_text(result: Mapping[str, Any]) -> str:
    """Return `trained on 1,438 examples, epoch 30`."""
    all_weights = [each["weights"] for each in result.get("members", [result])]
    first, epochs = all_weights[0], [str(each["epochs"]) for each in all_weights]
    trained = "a checkpoint of" if first["from_checkpoint"] else "trained on"
    if "members" in result:
        trained = "checkpoints of" if first["from_checkpoint"] else "each trained on"
    last = f"epoch {epochs[0]}" if len({*epochs}) == 1 else f"epochs {join_and(epochs)}"
    return f"{trained} {first['images']:,} examples, {last}"


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
