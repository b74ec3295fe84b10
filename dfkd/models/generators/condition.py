"""What conditions a generator that is conditioned on texts: hidden states of a text tower."""

from dataclasses import dataclass

from torch import Tensor


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
