"""Forward and backward pass of taming-transformers' VQGAN decoder with channels last in memory.

Convolutions are fastest so. But torch's group norm is not: on a CPU its backward pass takes several
times as long, above all in bfloat16, and on a GPU it copies each map to another order and, under
autocast, to float32 and back. Here group norm is a multiplication and an addition per channel, in
one function with the swish that follows it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def decode(decoder: Any, codes: Tensor) -> Tensor:
    """Images [B, 3, H, W], as `decoder(codes)` of a frozen taming `Decoder` returns them.

    Args:
        codes: [B, C, h, w], the decoder's input. Gradients flow to it but not to the weights.
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
    """A ResnetBlock of taming's `Decoder` in evaluation mode: [B, C, H, W] to [B, D, H, W]."""
    hidden = block.conv1(_normalise(block.norm1, images, swish=True))
    hidden = block.conv2(_normalise(block.norm2, hidden, swish=True))
    if block.in_channels != block.out_channels:
        images = block.nin_shortcut(images)
    total: Tensor = images + hidden
    return total


def _attend(block: Any, images: Tensor) -> Tensor:
    """Self-attention between all positions of a map, with one head; [B, C, H, W]."""
    normal = _normalise(block.norm, images, swish=False)
    queries, keys, values = (
        part(normal).flatten(2).transpose(1, 2)[:, None] for part in (block.q, block.k, block.v)
    )
    attended = F.scaled_dot_product_attention(queries, keys, values)
    maps = attended[:, 0].transpose(1, 2).reshape(images.shape)
    projected: Tensor = block.proj_out(maps.contiguous(memory_format=torch.channels_last))
    return images + projected


def _normalise(norm: Any, images: Tensor, swish: bool) -> Tensor:
    """`_Normalise` with the weights of a group-norm layer."""
    normalised: Tensor = _Normalise.apply(  # type: ignore[no-untyped-call]
        images, norm.weight, norm.bias, norm.num_groups, norm.eps, swish
    )
    return normalised


class _Normalise(torch.autograd.Function):
    """Group norm y = w (x - mean) / std + b, followed by the swish if `swish` is true.

    Statistics are float32; images keep their dtype.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, swish: bool
    ) -> Tensor:
        """Normalised images [B, C, H, W], with the swish if it is asked for."""
        # Statistics, weight and bias are folded into one scale and one shift per channel. The
        # variance is the mean square minus the squared mean, which rounding can make negative.
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
        # dx is linear in x and g, so it is again one addition and two products per channel.
        along = (_means(gradient, groups) * scale).mean(dim=2, keepdim=True)
        across = (_means(gradient * images, groups) * scale).mean(dim=2, keepdim=True)
        slope = (mean * along - across) * inverse.square()
        constant, slope = (part.expand_as(scale) for part in (-along - mean * slope, slope))
        result = torch.addcmul(_spread(constant, images), images, _spread(slope, images))
        result.addcmul_(gradient, _spread(scale, images))
        return result, None, None, None, None, None


def _means(images: Tensor, groups: int) -> Tensor:
    """The mean of each channel over H and W: float32 [B, groups, C / groups]."""
    means = images.mean(dim=(2, 3), dtype=torch.float32)
    return means.view(len(images), groups, -1)


def _spread(numbers: Tensor, images: Tensor) -> Tensor:
    """`numbers` [B, groups, C / groups] as [B, C, 1, 1], in the dtype of `images`."""
    return numbers.reshape(len(images), -1, 1, 1).to(images.dtype)
