"""`[task]`: the kind of targets, the loss, and the weights in the loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag, ValidationInfo, field_validator

from hpo.studyfile.metrics import LOSSES, is_user_defined
from hpo.studyfile.values import AboveZero, Positive, Reference, Settings

_WEIGHTED = {"class_weights": "classification", "pos_weight": "multilabel"}
"""Weights in the loss -> the kind of task that uses them."""


class TaskSettings(Settings):
    """`[task]`: the kind of targets, the loss, and the weights of classes in it."""

    kind: Literal["classification", "multilabel", "regression"] = "classification"
    loss: Annotated[
        Annotated[Literal["cross_entropy", "bce", "mse", "mae", "huber", "gaussian_nll"], Tag("word")]
        | Annotated[Reference, Tag("reference")]
        | None,
        Field(description="cross_entropy, bce, mse, mae, huber, gaussian_nll or FILE.py:NAME"),
    ] = None
    class_weights: Annotated[
        Annotated[Literal["balanced"], Tag("word")]
        | Annotated[list[AboveZero], Field(min_length=2), Tag("list")]
        | None,
        Field(description="balanced, or a list of numbers above 0, one for each class"),
    ] = None
    pos_weight: Annotated[
        Annotated[Literal["balanced"], Tag("word")]
        | Annotated[list[AboveZero], Field(min_length=1), Tag("list")]
        | None,
        Field(description="balanced, or a list of numbers above 0, one for each label"),
    ] = None
    top_k: Positive | None = None

    @field_validator("loss")
    @classmethod
    def _check_loss(cls, loss: str | None, info: ValidationInfo) -> str | None:
        kind = info.data.get("kind")
        if loss is not None and kind is not None and not is_user_defined(loss) and loss not in LOSSES[kind]:
            raise ValueError(f"must be {', '.join(LOSSES[kind])} or FILE.py:NAME for kind = {kind}")
        return loss

    @field_validator("class_weights", "pos_weight")
    @classmethod
    def _check_weights(cls, weights: str | list[float] | None, info: ValidationInfo) -> str | list[float] | None:
        kind, of = info.data.get("kind"), _WEIGHTED[str(info.field_name)]
        if weights is not None and kind is not None and kind != of:
            raise ValueError(f"not used with kind = {kind}, only with {of}")
        if weights is not None and is_user_defined(str(info.data.get("loss"))):
            raise ValueError(f"not used with loss = {info.data['loss']}, which can have weights itself")
        return weights

    @property
    def used_loss(self) -> str:
        """The loss, with the default of the kind filled in."""
        return self.loss or LOSSES[self.kind][0]
