"""Preprocessing of inputs, fitted on training examples only: imputation, encoding of categories, standardization.

scikit-learn fits (SimpleImputer, OneHotEncoder, StandardScaler). What it finds is stored as numbers and
strings, `FittedPreprocessing`, which is JSON in a model folder, and applied by NumPy. So a fitted preprocessing is read
from JSON without a pickle, and applying it needs no scikit-learn.

The inputs of a table are its number columns in their order, then those of its categorical columns: a column of 0 and 1
for each category, only zeros for an unknown one; or one column of indices for an embedding, from 1 in alphabetical
order, where index 0 is an unknown or missing category.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from hpo.data.table_rows import TableRows
from hpo.errors import DataError, SettingError
from hpo.studyfile import PreprocessSettings

Array = NDArray[np.float32] | NDArray[np.int64]

Inputs = Array | TableRows
"""Inputs before preprocessing: arrays [N, ...], or rows of a table."""

MAX_CATEGORIES = 1_000
"""Largest number of categories of a column that has an input for each category."""

MAX_INDICES = 50_000
"""Largest number of categories of all embedded columns: a model card has their names, and float32 the exact indices."""

AT_ONCE = 2**22
"""Largest number of values that are converted to float64 at once."""


class FittedPreprocessing(BaseModel):
    """What a preprocessing has learned from training examples; `model_dump()` is JSON.

    `numeric` and `categorical` are the columns of a table, empty for arrays. `mean` and `scale` have a number for each
    number column, or for each feature or channel of an array. `fill_numbers` and `fill_categories` replace missing
    values; without `fill_numbers` a missing value is an error. `indices` is the number of indices of each categorical
    column for an embedding, empty where inputs are 0 and 1. `padding` is the number of zeros at the end of a table's
    inputs.
    """

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    numeric: list[str] = []
    categorical: list[str] = []
    fill_numbers: list[float] | None = None
    fill_categories: list[str] | None = None
    mean: list[float] | None = None
    scale: list[float] | None = None
    categories: list[list[str]] = []
    indices: list[Annotated[int, Field(ge=1, lt=2**31)]] = []
    unknown: Literal["error", "ignore"] = "error"
    kind: Literal["table", "rows", "images"] = "rows"
    padding: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        wanted = len(self.numeric) if self.kind == "table" else len(self.mean or ())
        if self.kind != "table" and (self.numeric or self.categorical or self.fill_numbers or self.fill_categories):
            raise ValueError("columns of a table")
        for numbers in (self.mean, self.scale, self.fill_numbers):
            if numbers is not None and len(numbers) != wanted:
                raise ValueError("lists of different lengths")
        for texts in (self.categories, self.fill_categories):
            if texts is not None and len(texts) != len(self.categorical):
                raise ValueError("lists of different lengths")
        if self.indices and any(n <= len(c) for n, c in zip(self.indices, self.categories, strict=True)):
            raise ValueError("more categories than indices")
        if self.indices and self.padding:
            raise ValueError("padding after indices")
        if (self.mean is None) != (self.scale is None) or any(each <= 0 for each in self.scale or ()):
            raise ValueError("invalid scale")
        return self

    @property
    def changes(self) -> bool:
        """Return whether there is anything to apply."""
        return self.kind == "table" or self.mean is not None

    @property
    def features(self) -> int:
        """The number of input columns of a table."""
        return len(self.numeric) + (len(self.indices) or sum(map(len, self.categories))) + self.padding

    def fits(self, shape: Sequence[int]) -> bool:
        """Return whether the inputs of a network, each of this shape, may come from this preprocessing."""
        if self.kind == "table":
            return tuple(shape) == (self.features,) and len(self.categories) == len(self.categorical)
        return self.mean is None or len(self.mean) == (shape[-1] if self.kind == "rows" else shape[0])

    def apply(self, inputs: Inputs) -> Array:
        """Return the inputs of the network. Raises DataError for a value that this preprocessing has no rule for."""
        if isinstance(inputs, TableRows):
            return self._apply_to_table(inputs)
        if self.mean is None:
            return inputs
        mean, scale = np.array(self.mean), np.array(self.scale)
        if self.kind == "images":
            mean, scale = mean[:, None, None], scale[:, None, None]
        result = np.empty_like(inputs, np.float32)
        for part in _parts(inputs):
            with np.errstate(over="ignore"):  # an overflow becomes infinite, which is refused below
                result[part] = (inputs[part].astype(np.float64) - mean) / scale
            if not np.isfinite(result[part]).all():
                raise DataError("an input is too large for float32 after standardization")
        return result

    def _apply_to_table(self, rows: TableRows) -> NDArray[np.float32]:
        numbers = rows.numbers
        if self.fill_numbers is not None:
            numbers = np.where(np.isnan(numbers), self.fill_numbers, numbers)
        if self.mean is not None:
            assert self.scale is not None, "the model has both"
            numbers = (numbers - np.array(self.mean)) / np.array(self.scale)
        result = np.zeros((len(rows), self.features), np.float32)
        first = len(self.numeric)
        with np.errstate(over="ignore"):
            result[:, :first] = numbers
        rows.require(~np.isnan(numbers), rows.numeric, lambda row, column: _MISSING)
        rows.require(np.isfinite(result[:, :first]), rows.numeric, lambda row, column: "is too large for float32")
        found = self._codes(rows)
        if self.indices:
            result[:, first:] = found
            return result
        for names, codes in zip(self.categories, found.T, strict=True):
            known = np.flatnonzero(codes)
            result[known, first + codes[known] - 1] = 1
            first += len(names)
        return result

    def _codes(self, rows: TableRows) -> NDArray[np.int64]:
        """Return the numbers of the categories from 1, and 0 for unknown and missing ones, [N, columns]."""
        found = _filled(rows.categories, self.fill_categories)
        has_value: NDArray[np.bool_] = found != None  # noqa: E711 - elementwise
        if not self.indices or self.fill_numbers is None:
            rows.require(has_value, rows.categorical, lambda row, column: _MISSING)
        codes = np.zeros(found.shape, np.int64)
        for column, names in enumerate(self.categories):
            numbers = {name: number for number, name in enumerate(names, start=1)}
            codes[:, column] = [numbers.get(text, 0) for text in found[:, column]]
        if self.unknown == "error":
            rows.require((codes > 0) | ~has_value, rows.categorical, lambda row, column: _unknown(found[row, column]))
        return codes


def of_one_width(fitted: Sequence[FittedPreprocessing]) -> list[FittedPreprocessing]:
    """Return the preprocessings of folds with inputs of the same width, which all folds of a network need.

    Training rows may lack a category that those of other folds have: zeros take the place of its column, and an
    embedding has an index that they do not use.
    """
    if fitted[0].kind != "table":
        return list(fitted)
    widest = max(each.features for each in fitted)
    indices = [max(counts) for counts in zip(*(each.indices for each in fitted), strict=True)]
    return [each.model_copy(update={"padding": widest - each.features, "indices": indices}) for each in fitted]


_MISSING = "the value is missing: set preprocess.impute, or remove the row"


def _unknown(text: str) -> str:
    advice = 'remove the row, or train with preprocess.unknown = "ignore"'
    return f"the category '{text}' is not among the training rows: {advice}"


@dataclass(frozen=True)
class Preprocessing:
    """A preprocessing that has seen no example yet: `fit(training).apply(any)`."""

    settings: PreprocessSettings

    def fit(self, training: Inputs) -> FittedPreprocessing:
        """Fit on training inputs. Raises SettingError for a setting that does not fit this kind of input."""
        if isinstance(training, TableRows):
            return self._fit_table(training)
        if training.dtype == np.int64 and (self.settings.standardize or self.settings.image != "none"):
            raise SettingError("preprocess", "the examples are integers, such as token ids: remove it")
        is_rows = training.ndim == 2
        if is_rows and self.settings.image != "none":
            raise SettingError("preprocess.image", "the examples are rows, not images: use standardize = true")
        if not is_rows and self.settings.standardize:
            raise SettingError(
                "preprocess.standardize", 'the examples are images: use preprocess.image = "per-channel"'
            )
        if not (self.settings.standardize or self.settings.image == "per-channel"):
            return FittedPreprocessing()
        columns = (np.moveaxis(training[part], 1, -1).reshape(-1, training.shape[1]) for part in _parts(training))
        mean, scale = _standardization(columns)
        return FittedPreprocessing(kind="rows" if is_rows else "images", mean=mean, scale=scale)

    def _fit_table(self, rows: TableRows) -> FittedPreprocessing:
        settings = self.settings
        if settings.image != "none":
            raise SettingError("preprocess.image", "the examples are rows, not images: use standardize = true")
        for name, empty in zip((*rows.numeric, *rows.categorical), _empty_columns(rows), strict=True):
            if empty:
                raise DataError(f"{rows.file}: column '{name}' has no value among the training rows: leave it out")
        numbers, fill_numbers, fill_categories = rows.numbers, None, None
        is_embedded = settings.categorical == "embedding"
        if settings.impute != "none":
            fill_numbers = _imputed(numbers, np.nan, settings.impute)
            fill_categories = None if is_embedded else _imputed(rows.categories, None, "most_frequent")
            numbers = np.where(np.isnan(numbers), fill_numbers, numbers)
        rows.require(~np.isnan(numbers), rows.numeric, lambda row, column: _MISSING)
        found = _filled(rows.categories, fill_categories)
        if not is_embedded or settings.impute == "none":
            rows.require(found != None, rows.categorical, lambda row, column: _MISSING)  # noqa: E711 - elementwise
        categories = _categories(found, rows.categorical, is_embedded)
        mean, scale = _standardization([numbers]) if settings.standardize and rows.numeric else (None, None)
        return FittedPreprocessing(
            kind="table",
            numeric=list(rows.numeric),
            categorical=list(rows.categorical),
            fill_numbers=fill_numbers,
            fill_categories=fill_categories,
            mean=mean,
            scale=scale,
            categories=categories,
            indices=[1 + len(each) for each in categories] if is_embedded else [],
            unknown=settings.unknown,
        )


def _categories(found: NDArray[np.object_], names: Sequence[str], is_embedded: bool) -> list[list[str]]:
    """Return the categories of each column, in alphabetical order. None among them, a missing one, is left out."""
    if not names:
        return []
    from sklearn.preprocessing import OneHotEncoder

    fitted = OneHotEncoder().fit(found).categories_
    categories = [[name for name in each.tolist() if name is not None] for each in fitted]
    key = "data.categorical"
    for name, each in zip(names, categories, strict=True):
        if len(each) > MAX_CATEGORIES and not is_embedded:
            problem = f"column '{name}' has {len(each):,} categories, at most {MAX_CATEGORIES:,} are possible"
            advice = 'leave it out of data.features, or set preprocess.categorical = "embedding"'
            raise SettingError(key, f"{problem}: {advice}")
    count = sum(map(len, categories))
    if count > MAX_INDICES and is_embedded:
        problem = f"the columns have {count:,} categories, at most {MAX_INDICES:,} are possible"
        raise SettingError(key, f"{problem}: leave a column out of data.features")
    return categories


def _empty_columns(rows: TableRows) -> list[bool]:
    missing: NDArray[np.bool_] = rows.categories == None  # noqa: E711 - elementwise
    return [bool(each.all()) for part in (np.isnan(rows.numbers), missing) for each in part.T]


def _imputed(values: NDArray[Any], missing: float | None, strategy: str) -> Any:
    """Return what replaces a missing value, for each column."""
    if not values.shape[1]:
        return []
    from sklearn.impute import SimpleImputer

    imputer = SimpleImputer(missing_values=missing, strategy=strategy)
    return imputer.fit(values).statistics_.tolist()


def _filled(categories: NDArray[np.object_], fill: Sequence[str] | None) -> NDArray[np.object_]:
    if fill is None or not categories.shape[1]:
        return categories
    return np.where(categories == None, np.array(fill, object), categories)  # noqa: E711 - elementwise


def _standardization(parts: Any) -> tuple[list[float], list[float]]:
    """Return mean and scale of each column; the scale of a constant column is 1."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    for part in parts:
        scaler.partial_fit(part.astype(np.float64, copy=False))
    return scaler.mean_.tolist(), scaler.scale_.tolist()


def _parts(inputs: NDArray[Any]) -> list[slice]:
    """Return slices of the examples that have at most AT_ONCE values each."""
    size = max(1, AT_ONCE // max(1, inputs[:1].size))
    return [slice(start, start + size) for start in range(0, len(inputs), size)]
