"""The passes of passes.c, called with tensors.

Their callers compute the same by torch's operations where there are no passes, equal but for rounding and slower
(benchmarks/passes.py).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from ctypes import c_double, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpo.training.compiled.library import CompilationError, load_library

MACROS = {
    torch.float32: ["REAL=float"],
    torch.float64: ["REAL=double"],
    torch.bfloat16: ["REAL=float", "BFLOAT16=1"],
}
"""The types of activations and gradients, and the macros of passes.c for them."""

TYPES: dict[str, Any] = {"p": c_void_p, "n": c_int64, "f": c_int, "d": c_double}
ARGUMENTS = {
    "forward": "pppppdpfnnnn",
    "drop": "pppppnn",
    "backward": "pppppppnpnfnnnn",
    "cross_entropy": "ppnpppnnn",
    "descend": "ppppppnn",
    "descend_with_momentum": "ppppppppfnn",
    "adam": "pppppppppppfnnn",
    "descend_scaled": "pppppppppfnn",
    "lion": "pppppppppnn",
}
"""Function -> its arguments: pointers, numbers, flags and doubles."""


class Passes:
    """The passes for one type. Nothing is checked here.

    Vectors, statistics and master values are float32 where the type is bfloat16.
    """

    def __init__(self, macros: Sequence[str]) -> None:
        library = load_library(Path(__file__).with_name("passes.c"), macros)
        self._functions = {name: library[name] for name in ARGUMENTS}
        for name, function in self._functions.items():
            function.argtypes, function.restype = [TYPES[each] for each in ARGUMENTS[name]], None

    def _call(self, name: str, *arguments: Tensor | float | None) -> None:
        self._functions[name](*[each.data_ptr() if isinstance(each, Tensor) else each for each in arguments])

    def normalize(
        self, products: Tensor, bias: Tensor | None, weight: Tensor, shift: Tensor, eps: float, relu: bool
    ) -> tuple[Tensor, Tensor]:
        """Return batch norm, then ReLU, of products [K, units, B], and statistics [3, K, units].

        The vectors are [K, units]. The statistics are means, inverse deviations, and means of products plus `bias`.
        """
        out, statistics = torch.empty_like(products), shift.new_empty(3, *products.shape[:2])
        vectors = bias, weight, shift  # of one stride: parts of one block, or contiguous copies of these
        self._call("forward", products, out, *vectors, eps, statistics, relu, *products.shape, shift.stride(0))
        return out, statistics

    def shift(self, products: Tensor, weight: Tensor | None, shift: Tensor | None, relu: bool) -> None:
        """Multiply products [K, units, B] by `weight`, add `shift`, both [K, units], and apply ReLU, all in place."""
        sizes = *products.shape, 0 if shift is None else shift.stride(0)
        self._call("forward", products, products, None, weight, shift, 0.0, None, relu, *sizes)

    def drop(self, out: Tensor, keys: Tensor, counters: Tensor, thresholds: Tensor, scales: Tensor) -> None:
        """Apply dropout to activations [K, units, B] in place; the others are those of `random_words`, and factors."""
        self._call("drop", out, keys, counters, thresholds, scales, len(out), out[0].numel())

    def backward(
        self,
        grads: Tensor,
        outputs: Tensor,
        relu: bool,
        scales: Tensor | None,
        shift_grad: Tensor | None,
        products: Tensor | None = None,
        weight: Tensor | None = None,
        statistics: Tensor | None = None,
        weight_grad: Tensor | None = None,
    ) -> None:
        """Replace the gradient of outputs by that of the products; write those of shift and weight.

        `scales` [K, 1] are the factors of dropout after ReLU, None without dropout.
        """
        strides = [0 if each is None else each.stride(0) for each in (weight_grad, shift_grad, weight)]
        written = weight_grad, strides[0], shift_grad, strides[1]
        self._call(
            "backward", grads, outputs, products, weight, statistics, scales, *written, relu, *grads.shape, strides[2]
        )

    def cross_entropy(self, logits: Tensor, labels: Tensor, with_grads: bool) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return losses [K, B] of logits [K, classes, B] and labels [K, B], their gradients, and correct labels, [K].

        The gradients are those with respect to the logits; None without `with_grads`.
        """
        members, classes, batch = logits.shape
        losses, grads = logits.new_empty(members, batch), torch.empty_like(logits) if with_grads else None
        correct = labels.new_empty(members)
        labels = labels if labels.stride(1) == 1 else labels.contiguous()
        self._call("cross_entropy", logits, labels, labels.stride(0), losses, grads, correct, members, classes, batch)
        return losses, grads, correct

    def update(
        self,
        name: str,
        tensors: Sequence[Tensor | None],
        columns: Sequence[Tensor | None],
        numbers: Sequence[int],
    ) -> None:
        """Run the pass of an optimizer, such as `adam`, which updates values and state in place.

        `tensors` are values, gradients, copies and state, [K, elements], `columns` hyperparameters, clips and decays,
        [K, 1], and `numbers` what else the pass takes before the sizes.
        """
        assert tensors[0] is not None
        self._call(name, *tensors, *columns, *numbers, *tensors[0].shape)


@functools.cache
def _load(dtype: torch.dtype) -> Passes | str:
    """Return the passes, or why there are none."""
    try:
        return Passes(MACROS[dtype])
    except CompilationError as error:
        return str(error)


def load_passes(dtype: torch.dtype) -> str | None:
    """Compile or load the passes for training in a type, unless this process has them; return why there are none.

    Call it before forks, which would load them anew.
    """
    # Losses and statistics are computed in float32 where activations are bfloat16.
    found = [_load(each) for each in (dtype, torch.float32) if each in MACROS]
    return next((each for each in found if isinstance(each, str)), None)


def passes_for(x: Tensor) -> Passes | None:
    """Return the passes for a tensor, None where torch computes instead.

    That is on other devices, in other types, where operations have several threads, and where there are no passes.
    """
    if x.device.type != "cpu" or x.dtype not in MACROS or torch.get_num_threads() > 1:
        return None
    found = _load(x.dtype)
    return None if isinstance(found, str) else found
