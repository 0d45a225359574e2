"""Text of a starter study file: ranges that suit most networks, with comments that say what to change."""

from __future__ import annotations

from collections.abc import Sequence

from hpo.starter.data_keys import DataKeys
from hpo.starter.line import Line
from hpo.starter.module_arguments import DROPOUT
from hpo.starter.schema_file import DIRECTIVE

HEAD = Line("", comment="A starter study file, written by `hpo init`: change what you know better.")
SEARCHED = Line(
    "", comment="{ low = ..., high = ... } and { choices = [...] } are searched; all other values are fixed."
)
SMALLEST_CNN_SIDE = 16
"""Images with a shorter side get an mlp."""

SMALL_ROWS, LARGE_ROWS = 1000, 20_000
"""Numbers of examples that decide the batch size."""

Table = tuple[str, Sequence[Line]]


def network_study_text(name: str, keys: DataKeys, module: str | None, arguments: Sequence[Line]) -> str:
    """Return the study file of a network study; `module` None is a built-in network."""
    tables: list[Table] = [
        ("data", keys.data),
        ("task", [keys.task]),
        ("preprocess", keys.preprocess),
        ("network", _built_in(keys.image) if module is None else [Line("module", module)]),
        ("network.args", arguments),
        (
            "optimizer",
            [
                Line("kind", "adam"),
                Line(
                    "lr",
                    {"low": 1e-4, "high": 1e-1, "log": True},
                    "on a log scale: each power of ten is equally likely",
                ),
                Line("weight_decay", {"low": 1e-6, "high": 1e-2, "log": True}),
            ],
        ),
        ("training", _training(keys, module)),
        ("search", [Line("trials", 32, "configurations; 100 or more find better ones"), _metric(keys)]),
    ]
    return _text((SEARCHED, Line("name", name)), tables)


def objective_study_text(name: str, objective: str) -> str:
    """Return the study file of an objective study."""
    search = [
        Line("trials", 50),
        Line("direction", "minimize", 'of the returned value; "maximize" for an accuracy'),
        Line("sampler", "tpe"),
        Line("pruner", "median", "compares what trial.report reports, if the function asks trial.should_prune"),
    ]
    ranges = Line("", comment="The function sets its ranges itself, with trial.suggest_float, suggest_int and so on.")
    return _text((ranges, Line("name", name), Line("objective", objective)), [("search", search)])


def _built_in(image: Sequence[int] | None) -> list[Line]:
    rest = [Line("batch_norm", True), Line("dropout", DROPOUT)]
    if image is not None and min(image) >= SMALLEST_CNN_SIDE:
        conv = Line("conv", [16, 32], "filters of each convolution, or { choices = [[16, 32], [32, 64]] }")
        return [Line("kind", "cnn"), conv, Line("kernel", 3), Line("padding", 1), Line("hidden", [64]), *rest]
    hidden = Line("hidden", [64, 64], "units of each hidden layer, or { choices = [[32], [64, 64]] }")
    return [Line("kind", "mlp"), hidden, *rest]


def _training(keys: DataKeys, module: str | None) -> list[Line]:
    size = 32 if keys.rows < SMALL_ROWS else 64 if keys.rows < LARGE_ROWS else 128
    lines = [Line("epochs", 30), Line("batch_size", size)]
    if module is None and keys.image is None:
        lines.append(Line("precision", "float32", '"auto" tries bfloat16, which is no faster for a small network'))
    return lines


def _metric(keys: DataKeys) -> Line:
    match keys.task.value:
        case "regression":
            return Line("metric", "val_rmse", "or val_mae, val_r2, val_loss")
        case "multilabel":
            return Line("metric", "val_f1", "or val_auroc, val_average_precision, val_loss")
    if keys.imbalance:
        return Line("metric", "val_balanced_accuracy", f"{keys.imbalance}: accuracy would hide the small ones")
    return Line("metric", "val_accuracy", "or val_f1, val_auroc, val_loss")


def _text(top: Sequence[Line], tables: Sequence[Table]) -> str:
    blocks = [[DIRECTIVE, *map(str, (HEAD, *top))]]
    blocks += [[f"[{table}]", *map(str, lines)] for table, lines in tables if lines]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"
