"""Tables of the layers and functions that can be stacked, by the kind of their stacked form.

- Elementwise: the function itself, applied to stacked tensors of any shape.
- Pooling: the function itself, with the members as further channels.
- Memberwise: the function of one member's tensors, run through torch.vmap. Dimension arguments, from either end, are
  those of one member.

A layer or function in no table raises CannotStackError. functions.py and stacked_network.py run them.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

ELEMENTWISE_LAYERS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Softplus,
    nn.Softsign,
    nn.Sigmoid,
    nn.LogSigmoid,
    nn.Tanh,
    nn.Hardtanh,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Identity,
)
"""Layers that act on each element independently: their stacked form is the layer itself."""

POOLING_LAYERS: dict[type[nn.Module], int] = {
    nn.MaxPool1d: 1,
    nn.MaxPool2d: 2,
    nn.AvgPool1d: 1,
    nn.AvgPool2d: 2,
    nn.AdaptiveAvgPool1d: 1,
    nn.AdaptiveAvgPool2d: 2,
    nn.AdaptiveMaxPool1d: 1,
    nn.AdaptiveMaxPool2d: 2,
}
"""Layers that act on each channel independently, and the number of dimensions that they pool over."""

NORM_LAYERS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d)

MEMBERWISE_LAYERS = (
    nn.Flatten,
    nn.Unflatten,
    nn.Softmax,
    nn.LogSoftmax,
    nn.Softmin,
    nn.GLU,
    nn.ZeroPad1d,
    nn.ZeroPad2d,
    nn.ReflectionPad2d,
    nn.ReplicationPad2d,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.Upsample,
    *NORM_LAYERS,
)
"""Layers run through torch.vmap; norm layers only if they have no parameters (see layers.VMAP_LAYERS)."""

DROPOUT_LAYERS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d)

SEQUENCE_LAYERS = (nn.LSTM, nn.GRU, nn.MultiheadAttention)
"""Layers of several arguments or results, which drop elements themselves at the rate `dropout`."""

VIEWING_LAYERS = (nn.Flatten, nn.Unflatten, nn.Identity, *DROPOUT_LAYERS)
"""Layers whose result may share memory with their argument; dropout does in evaluation mode."""


def _named(names: str, *modules: Any) -> set[Any]:
    """Return the functions of these names in the modules, and the names, which stand for methods."""
    split = names.split()
    return {getattr(module, name) for module in modules for name in split if hasattr(module, name)} | set(split)


ELEMENTWISE_FUNCTIONS = {
    *_named(
        "add sub mul div true_divide neg abs square sqrt rsqrt reciprocal pow exp expm1 log log1p log2 sin cos erf "
        "clamp clamp_min clamp_max maximum minimum where masked_fill lerp sign sigmoid tanh relu eq ne lt le gt ge "
        "logical_not logical_and logical_or logaddexp round floor ceil trunc remainder fmod clip log10 exp2 tan atan "
        "atan2 sinh cosh isnan isinf isfinite nan_to_num",
        torch,
    ),
    *_named("relu relu6 leaky_relu elu selu celu gelu silu mish softplus softsign sigmoid logsigmoid tanh", F),
    *_named("hardtanh hardsigmoid hardswish", F),
    *_named("add sub mul truediv floordiv neg abs pow mod eq ne lt le gt ge invert and_ or_", operator),
}
"""Functions and methods that act on each element and broadcast their arguments."""

POOLING_FUNCTIONS: dict[Any, int] = {
    getattr(module, f"{kind}_pool{dims}d"): dims
    for kind in ("max", "avg", "adaptive_avg", "adaptive_max")
    for dims in (1, 2)
    for module in (F, torch)
    if hasattr(module, f"{kind}_pool{dims}d")
}
"""Pooling functions, and the number of dimensions that they pool over."""

VIEWING_FUNCTIONS = {
    operator.getitem,
    getattr,
    *_named(
        "flatten unflatten reshape view view_as reshape_as permute transpose swapaxes swapdims movedim t squeeze "
        "unsqueeze expand expand_as broadcast_to narrow select diagonal chunk split tensor_split unbind contiguous "
        "detach type_as einsum",
        torch,
    ),
    *("to", "float", "double", "half", "bfloat16", "long", "int", "bool"),
}
"""Memberwise functions and methods whose result may share memory with their argument."""

COPYING_FUNCTIONS = {
    operator.matmul,
    *_named("cat concat concatenate stack hstack vstack clone repeat tile flip roll tril triu cumsum", torch),
    *_named("sum mean prod amax amin max min argmax argmin var std logsumexp all any", torch),
    *_named("matmul mm bmm mv outer baddbmm addmm softmax log_softmax new_zeros new_ones new_full", torch),
    *_named("zeros_like ones_like full_like layer_norm rms_norm", torch),
    *_named("softmax log_softmax softmin linear layer_norm group_norm rms_norm normalize glu pad interpolate", F),
    *_named("pixel_shuffle pixel_unshuffle cosine_similarity", F),
}
"""Memberwise functions and methods whose result has memory of its own."""

MEMBERWISE_FUNCTIONS = VIEWING_FUNCTIONS | COPYING_FUNCTIONS
SIZE_CONSTRUCTORS = {torch.arange, torch.linspace}
"""Functions that construct a tensor from sizes: torch.fx records them, and the result is the same for all members."""

IN_PLACE_REPLACEMENTS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    F.relu_: F.relu,
    torch.relu_: torch.relu,
    **{
        f"{name}_": name
        for name in ["relu", "add", "sub", "mul", "div", "sigmoid", "tanh", "clamp", "exp", "masked_fill"]
    },
}
"""In-place functions, and the functions that replace them: the stacked program runs nothing in place."""

AUGMENTED_ASSIGNMENTS = {operator.iadd, operator.isub, operator.imul, operator.itruediv}

READABLE_ATTRIBUTES = {"T", "mT", "values", "indices"}
"""Attributes that a forward may read: of tensors, and of results such as that of `x.max(1)`."""

TENSOR_METADATA = {"size", "dim", "numel", "shape", "ndim", "device", "dtype"}
"""Methods and attributes that return a tensor's metadata, which is no tensor."""

METADATA_ARITHMETIC = {
    operator.getitem,
    *(operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.pow, operator.mod),
    *(operator.neg, math.sqrt, *AUGMENTED_ASSIGNMENTS),
}

ADVICE: dict[Any, str] = {
    **dict.fromkeys(
        (F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout),
        "use a layer: nn.Dropout, nn.Dropout1d or nn.Dropout2d draw each member's masks from its own seed",
    ),
    **dict.fromkeys((F.conv1d, F.conv2d), "use a layer: nn.Conv1d or nn.Conv2d"),
    **dict.fromkeys((torch.conv1d, torch.conv2d), "use a layer: nn.Conv1d or nn.Conv2d"),
    F.batch_norm: "use a layer: nn.BatchNorm1d or nn.BatchNorm2d",
    F.embedding: "use a layer: nn.Embedding",
}
"""Common layers and functions without a stacked form, and what to use instead."""
