"""The space in which the diffusion model works: principal components of the VQGAN's latents.

    y = U^T (z - m) / s        U: axes of the most variance, m: mean, s: a common scale

The latents of a VQGAN are redundant: seven components of the miniature's 64 channels have all of
the variance. With noise in all channels, an object would show through it at nearly every time, so
that the model would learn at few times only which objects there are.
"""

import torch
from torch import Tensor, nn


class LatentSpace(nn.Module):
    """The principal components of latents; the buffers are `mean`, `axes` and `scale`.

    Args:
        channels: C, number of channels of the latents.
        components: k, number of principal components.
    """

    mean: Tensor
    """float32 [C]."""
    axes: Tensor
    """Orthonormal columns, float32 [C, k]."""
    scale: Tensor
    """Standard deviation of all components together, float32 []."""

    def __init__(self, channels: int, components: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("axes", torch.eye(channels)[:, :components])
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def fit(self, latents: Tensor) -> None:
        """Set the buffers by latents float32 [B, C, h, w]."""
        flat = latents.movedim(1, -1).flatten(0, -2)
        variances, axes = torch.linalg.eigh(torch.cov(flat.T))  # in ascending order
        count = self.axes.shape[1]
        self.mean.copy_(flat.mean(0))
        self.axes.copy_(axes[:, -count:].flip(1))
        self.scale.copy_(variances[-count:].mean().sqrt())

    def forward(self, latents: Tensor) -> Tensor:
        """The components [B, k, h, w] of latents [B, C, h, w]."""
        centred = latents - self.mean.view(-1, 1, 1)
        return torch.einsum("bchw,ck->bkhw", centred, self.axes) / self.scale

    def decoder_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a VQGAN that decodes components times `scale` instead of latents.

        Args:
            state: official weights. The codebook is turned into the axes, and the convolution after
                it turns back.
        """
        codes, weight = state["quantize.embedding.weight"], state["post_quant_conv.weight"]
        matrix = weight.flatten(1)
        return state | {
            "quantize.embedding.weight": (codes - self.mean) @ self.axes,
            "post_quant_conv.weight": (matrix @ self.axes)[:, :, None, None],
            "post_quant_conv.bias": state["post_quant_conv.bias"] + matrix @ self.mean,
        }
