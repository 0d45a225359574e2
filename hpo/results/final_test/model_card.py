"""Read and check a model card: the description of a network, or of an ensemble's networks, beside their weights.

    hpo.card/2           one network
    hpo.ensemble_card/1  the networks of an ensemble, with the number of picks of each

A card may come from anywhere: it is checked before a network is built from it. A damaged or too large card is an
HpoError of one line. Cards of version 1, which have no preprocessing, are read, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hpo.data.preprocessing import FittedPreprocessing
from hpo.errors import HpoError
from hpo.studyfile import NetworkSettings
from hpo.studyfile.messages import format_value
from hpo.training.device_data import IndexedShape, IntegerShape, Shape
from hpo.untrusted_files import parse_json, read_limited

CARD = "hpo.card/2"
EARLIER_CARD = "hpo.card/1"
ENSEMBLE_CARD = "hpo.ensemble_card/1"
CARD_FILE = "card.json"
LARGEST_CARD = 2**22
"""Bytes of a card: room for the names of 100,000 classes."""

MAX_AXES = 31
"""Axes of an example: NumPy's arrays have at most 32."""

Side = Annotated[int, Field(ge=1, lt=2**31)]


class FileModel(BaseModel):
    """Base of the models of files that hpo wrote: types are strict, unknown keys are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class CodeRecord(FileModel):
    """Record of the user's code: its folder, and the SHA-256 of each file."""

    folder: str
    files: dict[str, str]


class _Weights(FileModel):
    file: str
    sha256: str


class _Scaling(FileModel):
    mean: list[float] = Field(min_length=1)
    deviation: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)


class _Input(FileModel):
    shape: list[Side] = Field(min_length=1, max_length=MAX_AXES)
    classes: Side
    white: Side | None
    integers: bool = False
    task: Literal["classification", "multilabel", "regression"] = "classification"
    scaling: _Scaling | None = None


class _Data(FileModel):
    classes: list[str] | None = None


class _Config(FileModel):
    network: NetworkSettings


class _Member(FileModel):
    weights: _Weights
    config: _Config
    picks: Side = 1


class _CommonModel(FileModel):
    input: _Input
    data: _Data
    code: CodeRecord | None = None
    preprocess: FittedPreprocessing | None = None


class _CardModel(_CommonModel, _Member):
    @property
    def networks(self) -> list[_Member]:
        return [self]


class _EnsembleCardModel(_CommonModel):
    members: list[_Member] = Field(min_length=1)

    @property
    def networks(self) -> list[_Member]:
        return self.members


@dataclass(frozen=True)
class CardNetwork:
    """A network of a card: the file of its weights and its SHA-256, its settings, and its picks in an ensemble."""

    weights: str
    sha256: str
    settings: NetworkSettings
    picks: int


@dataclass(frozen=True)
class Card:
    """A model card: the networks with their weights, the input format and its preprocessing, and code.

    An ensemble has several networks. `classes` is the number of outputs. `scaling` has mean and deviation of the
    columns that a regression predicts. `names` are the names of the classes or labels, None where they are named by
    their numbers. `white` is the byte that stands for white, None for a network that takes floats or integers. Where
    the card of a table has the shape [1, 1, features], as earlier versions of hpo wrote it, the network gets its rows
    in this shape.
    """

    networks: tuple[CardNetwork, ...]
    shape: Shape
    classes: int
    names: tuple[str, ...] | None
    white: int | None
    task: str
    scaling: tuple[tuple[float, ...], tuple[float, ...]] | None
    code: Mapping[str, Any] | None
    preprocessing: FittedPreprocessing


def read_card(path: Path) -> Card:
    """Return the card in a file. Raises HpoError where it is invalid, or lacks something that is needed."""
    tree = _tree(path)
    kind = _EnsembleCardModel if tree["schema"] == ENSEMBLE_CARD else _CardModel
    try:
        model = kind.model_validate(tree)
    except ValidationError as error:
        raise damaged_card(path) from error
    names = tuple(model.data.classes or ())
    are_valid = len(names) == model.input.classes == len(set(names)) and all(map(str.isprintable, names))
    scaling = model.input.scaling
    if (model.input.task == "regression") != (scaling is not None) or (scaling is not None and not _fits(model.input)):
        raise damaged_card(path)
    files = [each.weights.file for each in model.networks]
    if (names and not are_valid) or any(Path(file).name != file for file in files):
        raise damaged_card(path)
    preprocessing = model.preprocess or FittedPreprocessing()
    if not preprocessing.fits(model.input.shape):
        raise damaged_card(path)
    return Card(
        networks=tuple(
            CardNetwork(each.weights.file, each.weights.sha256, each.config.network, each.picks)
            for each in model.networks
        ),
        shape=_shape(model.input, preprocessing),
        classes=model.input.classes,
        names=names or None,
        white=model.input.white,
        task=model.input.task,
        scaling=None if scaling is None else (tuple(scaling.mean), tuple(scaling.deviation)),
        code=None if model.code is None else model.code.model_dump(),
        preprocessing=preprocessing,
    )


def _shape(described: _Input, preprocessing: FittedPreprocessing) -> Shape:
    sides = tuple(described.shape)
    if preprocessing.indices:
        return IndexedShape(sides, preprocessing.indices)
    return IntegerShape(sides) if described.integers else sides


def _fits(described: _Input) -> bool:
    """Return whether the scaling of a regression fits its outputs, which may have a variance for each column."""
    scaling = described.scaling
    assert scaling is not None
    columns = len(scaling.mean)
    return len(scaling.deviation) == columns and described.classes in (columns, 2 * columns)


def damaged_card(path: Path) -> HpoError:
    """Return the error for an invalid card."""
    return HpoError(f"{path}: is damaged: something that `hpo predict` needs is missing or invalid")


def _tree(path: Path) -> dict[str, Any]:
    try:
        tree = parse_json(read_limited(path, LARGEST_CARD).decode())
    except OSError as error:
        reason = error.strerror or error
        raise HpoError(f"{path}: cannot be read ({reason}): name a folder that `hpo test` wrote") from error
    except UnicodeDecodeError as error:
        raise HpoError(f"{path}: is not UTF-8 text") from error
    except ValueError as error:
        raise HpoError(f"{path}: {error}") from error
    schema = tree.get("schema") if isinstance(tree, dict) else None
    if schema not in (EARLIER_CARD, CARD, ENSEMBLE_CARD):
        reads = f"{EARLIER_CARD}, {CARD} and {ENSEMBLE_CARD}"
        raise HpoError(f"{path}: has the schema {format_value(schema)}, but this version of hpo reads {reads}")
    return dict(tree)
