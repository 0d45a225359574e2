"""`[data]` and `[preprocess]`: the data set, its split, the columns of a table, and the preprocessing of the inputs."""

from __future__ import annotations

import os
from pathlib import Path as FilePath
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo, WithJsonSchema, field_validator

from hpo.memory_code import is_in_memory
from hpo.studyfile.values import MAX_INT, REFERENCE_PATTERN, Name, Natural, Settings, checked_reference, number_or

USER_DATA = "table:FILE, npz:FILE, folder:FOLDER or FILE.py:FUNCTION"
DATASETS = f"digits, mnist, fashion_mnist, cifar10, breast_cancer, wine, diabetes, {USER_DATA}"


TABLE_FILES = (".csv", ".parquet")

_USER_DATA_PATTERN = rf"^table:.*\.(csv|parquet)$|^(npz|folder):.|{REFERENCE_PATTERN}"
"""A superset of valid user data in files, for the JSON Schema."""


def user_data(dataset: str) -> tuple[Literal["table", "npz", "folder", "arrays", "code"], str] | None:
    """Return the format of the user's data and its path or reference; None for a data set that hpo knows.

    Arrays, and the table `table:memory:...`, are in the memory of a process and have the hash of their content instead.
    """
    kind, colon, path = dataset.partition(":")
    match kind:
        case "table" | "npz" | "folder" | "arrays":
            return kind, path
        case _:
            return ("code", dataset) if colon else None


def prefixed_user_data(dataset: str, folder: FilePath) -> str:
    """Return `npz:wine.npz` for `wine.npz`, and likewise for a folder or a Python file; "" for other names."""
    if ":" in dataset or not dataset:
        return ""
    if dataset.endswith(TABLE_FILES):
        return f"table:{dataset}"
    if dataset.endswith(".npz"):
        return f"npz:{dataset}"
    if dataset.endswith(".py"):
        return f"{dataset}:FUNCTION"
    return f"folder:{dataset}" if "/" in dataset or os.path.isdir(folder / dataset) else ""


def _check_user_data(dataset: str) -> str:
    kind, path = user_data(dataset) or ("", "")
    try:
        if kind == "code":
            checked_reference(dataset)
    except ValueError:
        path = ""
    if not path or not dataset.isprintable():
        raise ValueError(f"must be {USER_DATA}")
    if kind == "table" and not path.endswith(TABLE_FILES) and not is_in_memory(path):
        raise ValueError(f"a table must be a {' or '.join(TABLE_FILES)} file")
    return dataset


def _checked_file(path: str, other: str) -> str:
    if not (path.isprintable() and (path.endswith(TABLE_FILES) or is_in_memory(path))):
        raise ValueError(f"must be a {' or '.join(TABLE_FILES)} file, {other}")
    return path


DEFAULT_VALIDATION = 0.2
"""The fraction for the validation split where the data have no validation set."""

Column = Annotated[str, Field(min_length=1)]

OF_TABLES = {
    "data": ("target", "features", "categorical", "test"),
    "preprocess": ("impute", "categorical", "unknown"),
}
"""Keys that are used only with a table, by section."""


class DataSettings(Settings):
    """`[data]`: the data set, and the split of its training data into training and validation."""

    dataset: Annotated[
        Annotated[
            Literal["digits", "mnist", "fashion_mnist", "cifar10", "breast_cancer", "wine", "diabetes"], Tag("known")
        ]
        | Annotated[
            str,
            AfterValidator(_check_user_data),
            WithJsonSchema({"type": "string", "pattern": _USER_DATA_PATTERN}),
            Tag("user"),
        ],
        Discriminator(lambda value: "user" if isinstance(value, str) and ":" in value else "known"),
        Field(title="data set", description=DATASETS),
    ]
    validation: Annotated[
        Annotated[str, Tag("word")] | Annotated[float, Field(gt=0, lt=1), Tag("number")],
        number_or(str, "word"),
        Field(description="auto, a file, or a number above 0 and below 1"),
    ] = "auto"
    train_size: Annotated[int, Field(ge=2, le=MAX_INT)] | None = None
    split_seed: Natural = 0
    stratify: Annotated[
        Annotated[Literal["auto"], Tag("word")] | Annotated[bool, Tag("switch")],
        Discriminator(lambda value: "word" if isinstance(value, str) else "switch"),
        Field(description="auto, true or false"),
    ] = "auto"
    groups: Name | None = None
    order: Literal["time"] | None = None
    folds: Annotated[int, Field(ge=2, le=100)] | None = None
    splits: Annotated[int, Field(ge=2, le=1000)] | None = None

    target: Annotated[
        Annotated[
            Annotated[Column, Tag("word")] | Annotated[list[Column], Field(min_length=1), Tag("list")],
            Discriminator(lambda value: "list" if isinstance(value, list) else "word"),
        ]
        | None,
        Field(description="the name of a column, or a list of names", validate_default=True),
    ] = None
    features: Annotated[list[Column], Field(min_length=1)] | None = None
    categorical: list[Column] | None = None
    test: Annotated[
        Annotated[
            Annotated[str, Tag("word")] | Annotated[float, Field(gt=0, lt=1), Tag("number")], number_or(str, "word")
        ]
        | None,
        Field(description="a file, or a number above 0 and below 1"),
    ] = None

    @property
    def fraction(self) -> float:
        """The fraction of the training data for the validation split, where the data have no validation set."""
        return DEFAULT_VALIDATION if isinstance(self.validation, str) else self.validation

    @field_validator("validation")
    @classmethod
    def _check_validation(cls, validation: str | float, info: ValidationInfo) -> str | float:
        if not isinstance(validation, str) or validation == "auto":
            return validation
        if not str(info.data.get("dataset")).startswith("table:"):
            raise ValueError("must be auto or a number above 0 and below 1; a file is possible with a table only")
        return _checked_file(validation, "auto or a fraction of the rows")

    @field_validator("order")
    @classmethod
    def _check_order(cls, order: str | None, info: ValidationInfo) -> str | None:
        if order is not None and info.data.get("groups") is not None:
            raise ValueError("cannot be combined with groups")
        if order is not None and info.data.get("stratify") is True:
            raise ValueError("cannot be combined with stratify = true")
        return order

    @field_validator("folds")
    @classmethod
    def _check_folds(cls, folds: int | None, info: ValidationInfo) -> int | None:
        if folds is not None and info.data.get("validation", "auto") != "auto":
            raise ValueError(
                "cannot be combined with validation: each fold validates on its own rows; remove one of them"
            )
        return folds

    @field_validator("splits")
    @classmethod
    def _check_splits(cls, splits: int | None, info: ValidationInfo) -> int | None:
        if splits is not None and info.data.get("order") is not None:
            raise ValueError("cannot be combined with order: there is one split in time order")
        return splits

    @field_validator("target")
    @classmethod
    def _check_target(cls, target: str | list[str] | None, info: ValidationInfo) -> str | list[str] | None:
        if target is None and str(info.data.get("dataset")).startswith("table:"):
            raise ValueError("missing")
        if isinstance(target, list) and len(set(target)) < len(target):
            raise ValueError("must not name a column twice")
        return target

    @field_validator("features", "categorical")
    @classmethod
    def _check_columns(cls, columns: list[str] | None, info: ValidationInfo) -> list[str] | None:
        target, features = info.data.get("target"), info.data.get("features")
        for column in columns or ():
            if target is not None and column in ([target] if isinstance(target, str) else target):
                raise ValueError(f"must not contain the target '{column}'")
            if features is not None and column not in features:
                raise ValueError(f"'{column}' is not in data.features")
        if columns is not None and len(set(columns)) < len(columns):
            raise ValueError("must not name a column twice")
        return columns

    @field_validator("test")
    @classmethod
    def _check_test(cls, test: str | float | None) -> str | float | None:
        return _checked_file(test, "or a fraction of the rows") if isinstance(test, str) else test

    @property
    def is_in_memory(self) -> bool:
        """Whether any of the data are in the memory of a process, and in no file."""
        tables = (str(self.dataset).removeprefix("table:"), str(self.validation), str(self.test))
        return self.dataset.startswith("arrays:") or any(map(is_in_memory, tables))

    @property
    def targets(self) -> tuple[str, ...]:
        """The target columns of a table."""
        return (self.target,) if isinstance(self.target, str) else tuple(self.target or ())


class PreprocessSettings(Settings):
    """`[preprocess]`: the preprocessing of the inputs, fitted on training examples only."""

    standardize: bool = False
    impute: Literal["none", "median", "mean", "most_frequent"] = "none"
    categorical: Literal["onehot", "embedding"] = "onehot"
    unknown: Literal["error", "ignore"] = "error"
    image: Literal["none", "per-channel"] = "none"
