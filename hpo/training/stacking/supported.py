"""Which layers and functions have a stacked form, and which kind of form it is.

Three kinds. Elementwise: the function itself, whatever the shapes. Pooling: the function itself, with the members as
further channels. Memberwise: anything else that takes one member's tensors and gives one member's, through torch.vmap,
so that every dimension it is given, from either end, is that of the member alone. What is in no table is refused.

Only names: how each kind runs is said in functions.py and stacking.py.
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
"""Layers that act on each element alone: their stacked form is the layer itself."""

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
"""Layers that act on each channel alone, and over how many dimensions after it."""

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
"""Layers without parameters that are run member by member through torch.vmap; norms where they have none."""

DROPOUT_LAYERS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d)

VIEWING_LAYERS = (nn.Flatten, nn.Unflatten, nn.Identity, *DROPOUT_LAYERS)
"""What may return its argument's memory, dropout at inference among them."""


def _named(names: str, *modules: Any) -> set[Any]:
    """Return the functions of these names in the modules, and the names themselves: those of methods."""
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
"""Functions and methods of elements that broadcast their arguments."""

POOLING_FUNCTIONS: dict[Any, int] = {
    getattr(module, f"{kind}_pool{dims}d"): dims
    for kind in ("max", "avg", "adaptive_avg", "adaptive_max")
    for dims in (1, 2)
    for module in (F, torch)
    if hasattr(module, f"{kind}_pool{dims}d")
}
"""Pooling functions, and over how many dimensions they pool."""

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
"""Memberwise functions and methods whose result may be their argument's memory."""

COPYING_FUNCTIONS = {
    operator.matmul,
    *_named("cat concat concatenate stack hstack vstack clone repeat tile flip roll tril triu cumsum", torch),
    *_named("sum mean prod amax amin max min argmax argmin var std logsumexp all any", torch),
    *_named("matmul mm bmm mv outer baddbmm addmm softmax log_softmax new_zeros new_ones new_full", torch),
    *_named("zeros_like ones_like full_like layer_norm rms_norm", torch),
    *_named("softmax log_softmax softmin linear layer_norm group_norm rms_norm normalize glu pad interpolate", F),
    *_named("pixel_shuffle pixel_unshuffle cosine_similarity", F),
}
"""Memberwise functions and methods whose result is memory of its own."""

MEMBERWISE_FUNCTIONS = VIEWING_FUNCTIONS | COPYING_FUNCTIONS
SIZE_CONSTRUCTORS = {torch.arange, torch.linspace}
"""Functions that make a tensor of sizes: torch.fx records them, and the result is the same for all members."""

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
"""In-place functions, and the ones that are run in their place: the stacked program overwrites nothing."""

AUGMENTED_ASSIGNMENTS = {operator.iadd, operator.isub, operator.imul, operator.itruediv}

READABLE_ATTRIBUTES = {"T", "mT", "values", "indices"}
"""Of tensors, and of what `x.max(1)` returns."""

TENSOR_METADATA = {"size", "dim", "numel", "shape", "ndim", "device", "dtype"}
"""Methods and attributes of a tensor that say something about it and are no tensors."""

METADATA_ARITHMETIC = {
    operator.getitem,
    *(operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.pow, operator.mod),
    *(operator.neg, math.sqrt, *AUGMENTED_ASSIGNMENTS),
}

ADVICE: dict[Any, str] = {
    nn.MultiheadAttention: "write its products with Linear layers and scaled_dot_product_attention",
    nn.TransformerEncoderLayer: "write its attention with Linear layers and scaled_dot_product_attention",
    nn.TransformerEncoder: "write its attention with Linear layers and scaled_dot_product_attention",
    **dict.fromkeys(
        (F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout),
        "use a layer: nn.Dropout, nn.Dropout1d or nn.Dropout2d draw each member's masks from its own seed",
    ),
    **dict.fromkeys((F.conv1d, F.conv2d), "use a layer: nn.Conv1d or nn.Conv2d"),
    **dict.fromkeys((torch.conv1d, torch.conv2d), "use a layer: nn.Conv1d or nn.Conv2d"),
    F.batch_norm: "use a layer: nn.BatchNorm1d or nn.BatchNorm2d",
    F.embedding: "use a layer: nn.Embedding",
}
"""What to do instead of some that are often met and have no stacked form."""
