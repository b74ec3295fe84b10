"""What synthesis needs of a generator, whatever its kind.

A generator gives each image a latent and decodes it. What makes the latent depends on the kind:

    optimised   the latent starts at random, and the teacher's gradient moves it (VQGAN)
    sampled     the generator makes the latent from the prompt, and the teacher only labels it
    refined     a sampled latent, which the teacher's gradient then moves by some steps
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dfkd.models.teacher import Teacher


@dataclass(frozen=True)
class TextInput:
    """The hidden states of a text tower that a generator was trained on."""

    layers: int
    """Blocks of the tower, from the first on; the final layer norm follows."""
    pads_with_end: bool
    """Whether texts are padded with the end token; if not, with token 0, as open_clip does."""


@dataclass(frozen=True)
class Condition:
    """The texts that condition a generator, as hidden states of the teacher's text tower."""

    prompts: Tensor
    """Of the prompt of each image, float32 [B, L, D]."""
    empty: Tensor
    """Of the empty text, float32 [1, L, D]; guidance leads away from it."""


class Generator(Protocol):
    """A frozen generator of images, made by `GeneratorSettings.load`."""

    text: TextInput | None
    """What `init_latents` needs as condition; None if it needs none."""

    def require(self, teacher: Teacher, image_size: int) -> None:
        """Raise `ManifestError` if teacher or image size do not fit the generator."""

    def init_latents(
        self, seeds: Sequence[int], image_size: int, condition: Condition | None = None
    ) -> Tensor:
        """Latents float32 [B, C, h, w]; each depends only on its own seed and prompt.

        Args:
            image_size: side in pixels that is asked for; a generator that knows only one size makes
                that one.
        """

    def decode(self, latent: Tensor) -> Tensor:
        """Pixels float32 [B, 3, H, W] in [0, 1], differentiable in the latent."""

    def constrain(self, latent: Tensor) -> Tensor:
        """Move a latent, in place, into the range that the generator can decode; returns it."""


def to_pixels(image: Tensor) -> Tensor:
    """A decoder's output in [-1, 1] as pixels in [0, 1].

    The clamp passes the gradient on, except for a pixel out of range that a step would move further
    away (VQGAN-CLIP's clamp).
    """
    pixels: Tensor = _Clamp.apply(image.add(1).div(2))  # type: ignore[no-untyped-call]
    return pixels


class _Clamp(torch.autograd.Function):
    """A clamp to [0, 1] out of which pixels can come back (VQGAN-CLIP's ClampWithGrad)."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor) -> Tensor:
        """Pixels clamped to [0, 1]."""
        clamped = pixels.clamp(0, 1)
        ctx.save_for_backward(pixels - clamped)
        return clamped

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The gradient, without that of pixels which a step would move further out of the range."""
        (excess,) = ctx.saved_tensors
        (gradient,) = gradients
        # A step goes against the gradient, so where gradient and excess have the same sign it moves
        # the pixel back into the range.
        kept: Tensor = gradient * (gradient * excess >= 0)
        return kept
