"""The passes of taming-transformers' VQGAN decoder on a CPU, with channels last in memory.

Convolutions on a CPU are fastest with channels last, and torch's group norm is not: its backward
pass takes some forty times as long as with channels first, which would eat up all that is gained.
Here it is a multiplication and an addition per channel, and one function with the swish after it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def decode(decoder: Any, codes: Tensor) -> Tensor:
    """What `decoder(codes)` returns, images [B, 3, H, W], of a frozen taming `Decoder`.

    Args:
        codes: [B, C, h, w], the decoder's input. Gradients reach it, and no weights.
    """
    hidden = decoder.conv_in(codes)
    hidden = _residual(decoder.mid.block_1, hidden)
    hidden = _attend(decoder.mid.attn_1, hidden)
    hidden = _residual(decoder.mid.block_2, hidden)
    for level in reversed(decoder.up):
        for i, block in enumerate(level.block):
            hidden = _residual(block, hidden)
            if len(level.attn):
                hidden = _attend(level.attn[i], hidden)
        if hasattr(level, "upsample"):
            hidden = level.upsample(hidden)
    images: Tensor = decoder.conv_out(_normalise(decoder.norm_out, hidden, swish=True))
    return images


def _residual(block: Any, images: Tensor) -> Tensor:
    hidden = block.conv1(_normalise(block.norm1, images, swish=True))
    hidden = block.conv2(_normalise(block.norm2, hidden, swish=True))
    if block.in_channels != block.out_channels:
        shortcut = block.conv_shortcut if block.use_conv_shortcut else block.nin_shortcut
        images = shortcut(images)
    total: Tensor = images + hidden
    return total


def _attend(block: Any, images: Tensor) -> Tensor:
    """Each place of a map attends to all places, with one head."""
    normal = _normalise(block.norm, images, swish=False)
    queries, keys, values = (
        part(normal).flatten(2).transpose(1, 2)[:, None] for part in (block.q, block.k, block.v)
    )
    seen = F.scaled_dot_product_attention(queries, keys, values)
    maps = seen[:, 0].transpose(1, 2).reshape(images.shape)
    attended: Tensor = block.proj_out(maps.contiguous(memory_format=torch.channels_last))
    return images + attended


def _normalise(norm: Any, images: Tensor, swish: bool) -> Tensor:
    normalised: Tensor = _Normalise.apply(  # type: ignore[no-untyped-call]
        images, norm.weight, norm.bias, norm.num_groups, norm.eps, swish
    )
    return normalised


class _Normalise(torch.autograd.Function):
    """y = w (x - mean) / std + b of each group of channels, and its swish where asked for.

    Statistics are float32; images keep their dtype.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, swish: bool
    ) -> Tensor:
        mean = _means(images, groups).mean(dim=2, keepdim=True)
        square = _means(images * images, groups).mean(dim=2, keepdim=True)
        inverse = (square - mean.square()).clamp_min(0).add(eps).rsqrt()
        scale = inverse * weight.view(groups, -1)
        shift = bias.view(groups, -1) - mean * scale
        normal = torch.addcmul(_spread(shift, images), images, _spread(scale, images))
        ctx.save_for_backward(images, normal, scale, mean, inverse)
        ctx.swish = swish
        return F.silu(normal) if swish else normal

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """dx = g' - mean(g') - x' mean(g' x') with g' = w g / std and x' = (x - mean) / std."""
        images, normal, scale, mean, inverse = ctx.saved_tensors
        (gradient,) = gradients
        if ctx.swish:
            gradient = torch.ops.aten.silu_backward(gradient, normal)
        groups = scale.shape[1]
        along = (_means(gradient, groups) * scale).mean(dim=2, keepdim=True)
        across = (_means(gradient * images, groups) * scale).mean(dim=2, keepdim=True)
        slope = (mean * along - across) * inverse.square()
        constant, slope = (part.expand_as(scale) for part in (-along - mean * slope, slope))
        moved = torch.addcmul(_spread(constant, images), images, _spread(slope, images))
        moved.addcmul_(gradient, _spread(scale, images))
        return moved, None, None, None, None, None


def _means(images: Tensor, groups: int) -> Tensor:
    """float32 [B, groups, C / groups]: each channel's mean over H and W."""
    means = images.mean(dim=(2, 3), dtype=torch.float32)
    return means.view(len(images), groups, -1)


def _spread(numbers: Tensor, images: Tensor) -> Tensor:
    """Numbers [B, groups, C / groups] as [B, C, 1, 1] of the images' dtype."""
    return numbers.reshape(len(images), -1, 1, 1).to(images.dtype)
