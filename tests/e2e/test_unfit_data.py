"""Data that do not fit the study: `hpo check` and `hpo launch` say so in one line, and no study is stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Outcome

Run = Callable[..., Outcome]

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
NUMBERS = 3 * X[:, 0] + 1
CLASSES = (X[:, 0] > 0).astype(np.int64)
RARE = np.where(np.arange(40) < 3, 2, CLASSES)
LABELS = (X[:, :2] > 0).astype(np.int64)

REGRESSION, MULTILABEL = '[task]\nkind = "regression"', '[task]\nkind = "multilabel"'
NETWORK = '[network]\nkind = "mlp"\nhidden = [4]'
WIDE = '[network]\nmodule = "mine.py:Wide"'
CODE = """
from torch import nn

def scalar(output, targets):
    return (output - targets).abs().mean()

class Words(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, outputs)
    def forward(self, x):
        return self.head(self.embed(x).mean(1))

class Wide(nn.Module):
    def __init__(self, shape, outputs):
        super().__init__()
        self.layer = nn.Linear(shape[0], outputs + 1)
    def forward(self, x):
        return self.layer(x)
"""

UNFIT = {
    "text": (NUMBERS.astype(str), REGRESSION, 1, "y has type <U32; the targets must be numbers: convert them"),
    "nan": (
        np.where(np.arange(40) == 7, np.nan, NUMBERS),
        REGRESSION,
        1,
        "y: the target of example 7 is NaN or infinite; remove the example, or fill it",
    ),
    "one class": (0 * CLASSES, "", 1, "y: only one class ('0'); a classifier needs at least two"),
    "few rows": (
        RARE,
        "folds = 5",
        2,
        "data.folds: class '2' has 3 of the 5 examples that it needs, one in each fold",
    ),
    "few groups": (
        CLASSES,
        'folds = 5\ngroups = "g"',
        2,
        "data.groups: 'g' has 3 groups, fewer than 5 folds",
    ),
    "metric": (NUMBERS, f'{REGRESSION}\n[search]\nmetric = "val_f1"', 2, "search.metric: val_f1 is a metric of cla"),
    "folds": (CLASSES, "folds = 3\nvalidation = 0.2", 2, "data.folds: cannot be combined with validation"),
    "time": (CLASSES, 'folds = 40\norder = "time"', 2, "data.order: needs 41 rows or more for 40 folds (got 40 rows)"),
    "weights": (
        CLASSES,
        "[task]\nclass_weights = [1.0, 2.0, 3.0]",
        2,
        "task.class_weights: must have 2 numbers",
    ),
    "pos_weight": (
        LABELS,
        f"{MULTILABEL}\npos_weight = [1.0]",
        2,
        "task.pos_weight: must have 2 numbers",
    ),
    "loss": (
        NUMBERS,
        f'{REGRESSION}\nloss = "mine.py:scalar"',
        2,
        "task.loss: mine.py:scalar returns [] (float64)",
    ),
    "labels": (LABELS + 1, MULTILABEL, 1, "y: the labels of example 0 must be 0 or 1, one column for each label"),
    "outputs": (NUMBERS, f"{REGRESSION}\n{WIDE}", 2, "must return [B, 1], one number per target column"),
    "outputs of labels": (LABELS, f"{MULTILABEL}\n{WIDE}", 2, "must return [B, 2], one number per label"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_unfit_data_are_one_line_and_nothing_is_stored(hpo: Run, folder: Path, name: str) -> None:
    y, settings, status, problem = UNFIT[name]
    save: dict[str, Any] = {"x": X, "y": y, "g": np.arange(40) // 14}
    np.savez(folder / "data.npz", **save)
    (folder / "mine.py").write_text(CODE)
    search = "trials = 1"
    if "[search]" in settings:
        settings, _, metric = settings.partition("[search]")
        search += metric
    (folder / "unfit.toml").write_text(
        f'name = "unfit"\n[data]\ndataset = "npz:data.npz"\n{settings}\n{"" if "[network]" in settings else NETWORK}\n'
        f"[optimizer]\nlr = 0.1\n[training]\nepochs = 1\n[search]\n{search}\n"
    )
    for command in ("check", "launch"):
        outcome = hpo(command, "unfit.toml")
        assert outcome.status == status
        assert not outcome.out
        assert outcome.err.startswith("hpo: ")
        assert problem in outcome.err
        assert len(outcome.err.splitlines()) == 1
    assert "unfit" not in hpo("studies").out


WORDS = 'dataset = "npz:words.npz"', '[network]\nmodule = "mine.py:Words"'
TABLE = (
    'dataset = "table:rows.csv"\ntarget = "y"\ncategorical = ["city"]\n[preprocess]\ncategorical = "embedding"',
    NETWORK,
)
IMAGES = 'dataset = "digits"', NETWORK
INTEGERS, INDICES = "which are integers", "which are rows with categories in embeddings"
UNMIXABLE = {
    "integers": (
        WORDS,
        "mixup=0.2",
        f"mixup: cannot mix the examples of npz:words.npz, {INTEGERS} (got 0.2); remove it",
    ),
    "searched": (
        WORDS,
        "mixup={low=0.0,high=0.4}",
        f"mixup.high: cannot mix the examples of npz:words.npz, {INTEGERS}",
    ),
    "embeddings": (
        TABLE,
        "mixup={choices=[0,1]}",
        f"mixup.choices.1: cannot mix the examples of table:rows.csv, {INDICES}",
    ),
    "cutout of integers": (WORDS, "cutout=1", "cutout: needs images, but the examples of npz:words.npz are 5 integers"),
    "cutout of rows": (TABLE, "cutout=1", "cutout: needs images, but the examples of table:rows.csv are 2 features"),
    "cutout of the side": (
        IMAGES,
        "cutout=8",
        "cutout: must be below 8, the pixels of an image's shorter side (got 8)",
    ),
}


@pytest.mark.parametrize("name", UNMIXABLE)
def test_mixup_and_cutout_of_unfit_examples_are_one_line(hpo: Run, folder: Path, name: str) -> None:
    (data, network), setting, problem = UNMIXABLE[name]
    np.savez(folder / "words.npz", x=np.arange(200).reshape(40, 5) % 9, y=CLASSES)
    rows = (f"{x:.3f},{city},{y}" for (x, *_), city, y in zip(X, ["Ulm", "Rom"] * 20, CLASSES, strict=True))
    (folder / "rows.csv").write_text("\n".join(["x,city,y", *rows]))
    (folder / "mine.py").write_text(CODE)
    tables = f"{network}\n[optimizer]\nlr = 0.1\n[training]\nepochs = 1\n[search]\ntrials = 1\n"
    (folder / "unfit.toml").write_text(f'name = "unfit"\n[data]\n{data}\n{tables}')
    for command in ("check", "launch"):
        outcome = hpo(command, "unfit.toml", "--set", f"training.{setting}")
        assert (outcome.status, outcome.out) == (2, "")
        assert outcome.err.startswith(f"hpo: unfit.toml: training.{problem}")
        assert len(outcome.err.splitlines()) == 1
    assert hpo("check", "unfit.toml").status == 0
