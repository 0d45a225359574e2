"""The passes of passes.c, called with tensors.

They are 1.3 times as fast as torch's operations in a network with dropout (docs/explanation/log.md). Where they cannot
be compiled, all callers have a form by torch, which is equal but for rounding.
"""

from __future__ import annotations

import functools
from ctypes import c_double, c_int, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from hpo.training.compiled.library import CompilationError, load_library

REALS = {torch.float32: "float", torch.float64: "double"}
"""The types that the passes compute in, as C calls them."""


class Passes:
    """The passes for one type. See passes.c for shapes; nothing is checked here."""

    def __init__(self, real: str) -> None:
        library = load_library(Path(__file__).with_name("passes.c"), [f"REAL={real}"])
        self._forward, self._drop, self._backward = library.forward, library.drop, library.backward
        self._descend = library.descend
        pointer, number = c_void_p, c_int64
        self._forward.argtypes = [*[pointer] * 5, c_double, pointer, c_int, *[number] * 4]
        self._drop.argtypes = [*[pointer] * 5, number, number]
        self._backward.argtypes = [*[pointer] * 7, number, pointer, number, c_int, *[number] * 4]
        self._descend.argtypes = [*[pointer] * 4, number, number]
        for function in (self._forward, self._drop, self._backward, self._descend):
            function.restype = None

    def normalize(
        self, products: Tensor, bias: Tensor | None, weight: Tensor, shift: Tensor, eps: float, relu: bool
    ) -> tuple[Tensor, Tensor]:
        """Return batch norm, then ReLU, of products [K, units, B], and statistics [3, K, units].

        The vectors are [K, units]. The statistics are means, inverse deviations, and means of products plus `bias`.
        """
        out, statistics = torch.empty_like(products), products.new_empty(3, *products.shape[:2])
        self._run_forward(products, out, bias, weight, shift, eps, statistics, relu)
        return out, statistics

    def shift(self, products: Tensor, weight: Tensor | None, shift: Tensor | None, relu: bool) -> None:
        """Multiply products [K, units, B] by `weight`, add `shift`, both [K, units], and apply ReLU, all in place."""
        self._run_forward(products, products, None, weight, shift, 0.0, None, relu)

    def _run_forward(
        self,
        products: Tensor,
        out: Tensor,
        bias: Tensor | None,
        weight: Tensor | None,
        shift: Tensor | None,
        eps: float,
        statistics: Tensor | None,
        relu: bool,
    ) -> None:
        tensors = [_pointer(each) for each in (products, out, bias, weight, shift)]
        stride = 0 if shift is None else shift.stride(0)  # that of all vectors: they are parts of one block
        self._forward(*tensors, eps, _pointer(statistics), relu, *products.shape, stride)

    def drop(self, out: Tensor, keys: Tensor, counters: Tensor, thresholds: Tensor, scales: Tensor) -> None:
        """Apply dropout to activations [K, units, B] in place; the others are those of `random_words`, and factors."""
        pointers = (each.data_ptr() for each in (out, keys, counters, thresholds, scales))
        self._drop(*pointers, len(out), out[0].numel())

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
        tensors = [_pointer(each) for each in (grads, outputs, products, weight, statistics, scales, weight_grad)]
        strides = [0 if each is None else each.stride(0) for each in (weight_grad, shift_grad, weight)]
        self._backward(*tensors, strides[0], _pointer(shift_grad), strides[1], relu, *grads.shape, strides[2])

    def descend(self, values: Tensor, grads: Tensor, rates: Tensor, decays: Tensor | None) -> None:
        """Subtract `rates` times the gradients with weight decay from values [K, elements]; the others are [K, 1]."""
        pointers = values.data_ptr(), grads.data_ptr(), rates.data_ptr(), _pointer(decays)
        self._descend(*pointers, *values.shape)


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@functools.cache
def _load(dtype: torch.dtype) -> Passes | str:
    """Return the passes, or why there are none."""
    try:
        return Passes(REALS[dtype])
    except CompilationError as error:
        return str(error)


def load_passes(dtype: torch.dtype) -> str | None:
    """Compile or load the passes for training in a type, unless this process has them; return why there are none.

    Call it before forks, which would load them anew.
    """
    found = _load(dtype if dtype in REALS else torch.float32)  # that of the master values
    return found if isinstance(found, str) else None


def passes_for(x: Tensor) -> Passes | None:
    """Return the passes for a tensor's type and device, None where torch is used instead.

    That is where torch's operations have several threads, too.
    """
    if x.device.type != "cpu" or x.dtype not in REALS or torch.get_num_threads() > 1:
        return None
    found = _load(x.dtype)
    return None if isinstance(found, str) else found
