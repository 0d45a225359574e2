"""`hpo test`: train the selected configuration on all examples outside the test set, and evaluate it on the test set.

With `ensemble`, the members of the study's ensemble are trained instead, and their mean prediction is evaluated: the
same single evaluation, recorded in the same way.

The preprocessing is fitted on the same examples as the network; for a checkpoint, on the training split.

Everything that can fail is tried before the evaluation: the test files are read and checked, the network is trained (or
read from a checkpoint), its weights are saved, and the evaluation runs once on training examples. The storage records
the start of an evaluation before the network gets a test example; the evaluation counts once its result is stored, and
no result is shown before that. No other command opens test files.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import torch
from torch import nn

from hpo.data import SealedExamples, Split, check_test, load_test, load_whole
from hpo.errors import HpoError, StorageError, UsageError
from hpo.files import write_atomically
from hpo.results.derived_names import file_stem
from hpo.results.ensemble.network import EnsembleNetwork
from hpo.results.final_test.model_folder import check_free, new_folder, sha256
from hpo.results.final_test.result import Tested, result_tree, write_files
from hpo.results.final_test.scores import (
    check_untrained,
    evaluate_network,
    network_errors,
    training_sample,
)
from hpo.results.final_test.study_metric import metrics_of_test, study_metric
from hpo.results.final_test.subject import Subject, find_subject
from hpo.results.weights.checkpoint import Trained, read_checkpoint
from hpo.results.weights.new_training import NewTraining, train_anew
from hpo.search.plan import NetworkPlan, plan_stored, task_of
from hpo.search.study_records import CODE, DATA, RUN, precision_of, stored_study, user_attrs_of
from hpo.storage import IDENTITY, Storage, load_study
from hpo.storage.test_evaluations import (
    Evaluation,
    StudyRef,
    check_untested,
    complete_evaluation,
    completed,
    evaluations_of,
    fail_evaluation,
    main_score,
    start_evaluation,
)
from hpo.studyfile import Study
from hpo.training.device_data import IntegerShape, split_shape
from hpo.training.devices import describe_device
from hpo.training.networks.weights_file import load_network, read_weights, weights_to_bytes
from hpo.training.population import EpochResult
from hpo.training.seeds import derive_seed
from hpo.training.tasks.task import Task
from hpo.training.tasks.trivial import trivial_scores

MESSAGES = 10
"""About how many lines report the progress of the training."""

INSTEAD = "test one of the other trials without --ensemble"

Say = Callable[[str], None]


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of `hpo test`; without `folder` a new one is made in the current folder."""

    again: bool = False
    from_checkpoint: bool = False
    trial: int | None = None
    subnetworks: int | None = None
    device: str = "auto"
    folder: Path | None = None
    ensemble: bool = False


def evaluate_test_set(
    storage: Storage, name: str, options: EvaluationOptions, stop: threading.Event, say: Say
) -> Tested:
    """Evaluate a study's selected configuration on its test set; return the result, `hpo.test/2`, and its folder.

    With `options.ensemble` the study's ensemble is evaluated; the result is `hpo.ensemble_test/1`.

    Raises HpoError where the study has been evaluated and `options.again` is not set, and for every other failure; an
    error after the evaluation contains its accuracy. `stop` ends the training.
    """
    _check_options(options)
    stored = load_study(storage, name)
    study, attrs = stored_study(stored), user_attrs_of(stored)
    check_untested(attrs, name, options.again)
    folder = options.folder or _default_folder(name, len(completed(evaluations_of(attrs))) + 1)
    check_free(folder)
    subject = find_subject(storage, name, attrs, options.trial, options.ensemble)
    planned = plan_stored(study, stored, options.device)
    check_test(study)
    if not options.from_checkpoint:
        planned = replace(planned, split=_whole(study, planned))
    test_set = load_test(planned.split)
    _check_same_test_set(name, attrs, test_set)
    names, sample = planned.split.names, training_sample(planned.split, len(test_set))
    task = task_of(study, planned.split).to(torch.device("cpu"))
    few, metric = None if options.subnetworks is None else 2, study_metric(study, task)
    for selected in subject.members:
        check_untrained(study, selected, planned, sample, few)
    shown: dict[str, Any] = {}
    with _scores_in_errors(shown), new_folder(folder) as files:
        if options.from_checkpoint:
            trained = _read_checkpoints(storage, stored, subject, planned)
        else:
            trained = _train(study, subject, attrs[RUN]["precision"], planned, stop, say)
        network = _saved_network(files, name, subject, planned, trained, task)
        hashes = [sha256(files / subject.weights_file(each)) for each in subject.members]

        def write_result(number: int, scores: Mapping[str, Any]) -> dict[str, Any]:
            result = result_tree(study, attrs[DATA], subject, trained, hashes, number, scores, attrs.get(CODE))
            write_files(files, result, _input_format(planned, task), task.kind)
            return result

        def scores_on(examples: SealedExamples, subnetworks: int | None, what: str) -> dict[str, Any]:
            with network_errors(study, subject.label, what):
                found = evaluate_network(network, examples, task, names, metric, subnetworks, trained[0].seed)
                training, metrics = planned.split.train.targets, metrics_of_test(metric, task)
                return found | {"trivial": trivial_scores(task, training, examples.targets, metrics)}

        dry_run = scores_on(sample, few, "training examples")
        write_result(1, dry_run)  # fails now if the disk is full
        target = StudyRef(stored._study_id, name, attrs.get(IDENTITY))
        origin = {**subject.record(), "from_checkpoint": options.from_checkpoint}
        evaluate = partial(scores_on, test_set, options.subnetworks, "the test set")
        evaluation = _recorded(storage, target, options.again, origin, evaluate)
        shown.update(evaluation["result"])
        result = write_result(evaluation["look"], evaluation["result"])
    return Tested(result, folder)


def _recorded(
    storage: Storage, target: StudyRef, again: bool, origin: Mapping[str, Any], evaluate: Callable[[], dict[str, Any]]
) -> Evaluation:
    """Evaluate the test set, with a record in the storage before and after it; return the record with the scores."""
    begun = start_evaluation(storage, target, again, origin)
    try:
        scores = evaluate()
    except HpoError as error:
        fail_evaluation(storage, target, begun, str(error))
        raise HpoError(f"{error}; no test result was seen, so this evaluation does not count") from error
    try:
        return complete_evaluation(storage, target, begun, again, scores)
    except StorageError as error:
        raise StorageError(
            f"{error}; the test result is not shown, and the evaluation counts only if it was stored"
        ) from error


@contextmanager
def _scores_in_errors(scores: Mapping[str, Any]) -> Iterator[None]:
    """Add the accuracy to an error that is raised once there are scores."""
    try:
        yield
    except HpoError as error:
        if not scores:
            raise
        stored = f"the test set was evaluated, and the study has stored the result ({main_score(scores)})"
        raise HpoError(f"{error}; {stored}") from error


def _default_folder(name: str, evaluation: int) -> Path:
    return Path(f"{file_stem(name)}-test" + ("" if evaluation == 1 else f"-{evaluation}"))


def _check_options(options: EvaluationOptions) -> None:
    """Raise UsageError for options that exclude --ensemble."""
    others = {"--trial": options.trial, "--subnetworks": options.subnetworks}
    for option, value in others.items() if options.ensemble else ():
        if value is not None:
            raise UsageError(f"{option} excludes --ensemble: give one of them")


def _saved_network(
    folder: Path, name: str, subject: Subject, planned: NetworkPlan, trained: Sequence[Trained], task: Task
) -> nn.Module:
    """Save the weights of each member to a file; return the network, or the ensemble, with the weights of the files."""
    networks, shape = list[nn.Module](), split_shape(planned.split)
    for selected, each in zip(subject.members, trained, strict=True):
        path = folder / subject.weights_file(selected)
        metadata = {"study": name, "trial": str(selected.trial), "data_sha256": planned.split.content_sha256}
        write_atomically(weights_to_bytes(each.state, {"schema": "hpo.weights/1", **metadata}), path)
        state, _ = read_weights(path)
        networks.append(load_network(path, state, selected.config.network, shape, task.outputs).to(planned.device))
    return networks[0] if subject.ensemble is None else EnsembleNetwork(task, networks, subject.picks)


def _input_format(planned: NetworkPlan, task: Task) -> dict[str, Any]:
    """Return the format of the network's input and outputs, and the preprocessing, for the model card."""
    shape = split_shape(planned.split)
    form = {"shape": list(shape), "classes": task.outputs, "white": planned.split.white}
    if isinstance(shape, IntegerShape):
        form["integers"] = True
    if task.kind != "classification":
        form["task"] = task.kind
    if task.scaling is not None:
        form["scaling"] = {"mean": task.scaling.mean.tolist(), "deviation": task.scaling.deviation.tolist()}
    fitted = planned.split.preprocessing
    return {"input": form, "preprocess": fitted.model_dump() if fitted.changes else None}


def _whole(study: Study, planned: NetworkPlan) -> Split:
    """Return all examples outside the test set as training examples. Raises HpoError where they have changed."""
    whole = load_whole(study)
    if whole.content_sha256 != planned.split.content_sha256:
        raise HpoError(f"study '{study.name}': its data changed while they were read: start `hpo test` again")
    return whole


def _read_checkpoints(storage: Storage, stored: optuna.Study, subject: Subject, planned: NetworkPlan) -> list[Trained]:
    """Read the weights of the members of the subject from the checkpoints of the search."""
    advice = "omit --from-checkpoint, and it is trained again"
    return [read_checkpoint(storage, stored, each.trial, each.config, planned, advice) for each in subject.members]


def _train(
    study: Study, subject: Subject, precision: str, planned: NetworkPlan, stop: threading.Event, say: Say
) -> list[Trained]:
    """Train the members of the subject on the training examples of the plan, those of `_whole`."""
    count = len(planned.split.train)
    trainings = {
        each.trial: NewTraining(
            each.trial,
            each.config,
            each.epochs,
            derive_seed("test", study.search.seed, each.trial),
            val_losses=each.val_losses,
        )
        for each in subject.members
    }
    for number, each in trainings.items():
        plural = "s" if each.epochs > 1 else ""
        say(f"{study.name}: trial {number} on {count:,} examples for {each.epochs} epoch{plural}")

    def report_progress(result: EpochResult) -> None:
        losses = {number: metrics["train_loss"] for number, metrics in result.metrics.items()}
        epochs = trainings[next(iter(losses))].epochs if losses else 0
        if losses and result.epoch % max(1, epochs // MESSAGES) == 0:
            loss = f"{'mean ' if len(losses) > 1 else ''}training loss {fmean(losses.values()):.4f}"
            say(f"{study.name}: epoch {result.epoch}/{epochs}, {loss}")

    outcomes = train_anew(study, planned, precision, list(trainings.values()), stop, say, report_progress)
    found = []
    for selected in subject.members:
        outcome, training = outcomes[selected.trial], trainings[selected.trial]
        if outcome.state is None:
            raise HpoError(
                f"study '{study.name}': trained on all examples, trial {selected.trial} {outcome.failed}; the test set "
                f"was not evaluated: {'select another trial with --trial' if subject.ensemble is None else INSTEAD}"
            )
        used, device = precision_of(selected.config, precision), describe_device(planned.device)
        found.append(Trained(outcome.state, training.epochs, count, training.seed, False, device, used))
    return found


def _check_same_test_set(name: str, attrs: Mapping[str, Any], test_set: SealedExamples) -> None:
    """Raise HpoError where an earlier evaluation was on another test set: their results would not be comparable."""
    for evaluation in completed(evaluations_of(attrs)):
        if evaluation["result"]["sha256"] != test_set.content_sha256:
            raise HpoError(
                f"study '{name}': the test set is not that of test evaluation {evaluation['look']} (their SHA-256 "
                "differs): restore its files"
            )
