"""Transformer encoders as the calls of their layers, in which torch.fx traces them.

torch's own forward chooses between these calls and a fused form by values that a trace does not have. Both compute the
same, except where padded positions become 0; this raises ValueError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def _encoder_layer(
    layer: Any, src: Any, src_mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool = False
) -> Any:
    """Compute `nn.TransformerEncoderLayer`; `is_causal` only describes the mask, and is ignored."""

    def attend(x: Any) -> Any:
        masks = {"attn_mask": src_mask, "key_padding_mask": src_key_padding_mask}
        return layer.dropout1(layer.self_attn(x, x, x, need_weights=False, **masks)[0])

    def feed_forward(x: Any) -> Any:
        return layer.dropout2(layer.linear2(layer.dropout(layer.activation(layer.linear1(x)))))

    if layer.norm_first:
        x = src + attend(layer.norm1(src))
        return x + feed_forward(layer.norm2(x))
    x = layer.norm1(src + attend(src))
    return layer.norm2(x + feed_forward(x))


def _encoder(
    encoder: Any, src: Any, mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool | None = None
) -> Any:
    """Compute `nn.TransformerEncoder`; `is_causal` only describes the mask, and is ignored."""
    if encoder.use_nested_tensor and src_key_padding_mask is not None:
        problem = "src_key_padding_mask makes torch set padded positions to 0 in evaluation only"
        raise ValueError(f"{problem}; pass enable_nested_tensor=False to nn.TransformerEncoder")
    for layer in encoder.layers:
        src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask)
    return src if encoder.norm is None else encoder.norm(src)


TRANSFORMERS: dict[type[nn.Module], Callable[..., Any]] = {
    nn.TransformerEncoderLayer: _encoder_layer,
    nn.TransformerEncoder: _encoder,
}
"""Layers that are traced as calls of their own layers, and these calls: (layer, arguments of its forward) -> output."""
