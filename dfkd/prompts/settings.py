"""The settings of the built-in prompt methods (paper, section 3.2)."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from dfkd.config.plugins import PromptSettings
from dfkd.utils.types import CHECKED, Count, NonNegative, Positive

MAX_BANK = 16384
"""Prompts in the memory bank, over all classes: eight times the paper's draw of 2,048."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Vanilla(PromptSettings):
    """The class prompt `teacher.template` itself, the same for all images of a class."""

    made_by = "dfkd.prompts.method:PromptMethod"
    reads = ()


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Mix(PromptSettings):
    """Two of `prompts.styles`, mixed with a random weight (equation 6)."""

    made_by = "dfkd.prompts.mix:MixPrompts"


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Random(PromptSettings):
    """A random pseudo-word in the place of the style (equations 8-11)."""

    made_by = "dfkd.prompts.random:RandomPrompts"
    reads = ("template",)

    scale: NonNegative = 10.0
    """e, the spread of pseudo-words in standard deviations of the token table."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Contrastive(PromptSettings):
    """Pseudo-words that are optimised to differ from each other (equation 12)."""

    made_by = "dfkd.prompts.contrastive:ContrastivePrompts"
    reads = ("template",)

    scale: NonNegative = 10.0
    """e of the random pseudo-words that the optimisation starts from, as of `random`."""
    updates: Count = 100
    """Gradient steps of the pseudo-words."""
    learning_rate: Positive = 0.1
    """Learning rate of the pseudo-words."""
    batch_size: Annotated[int, Field(ge=2)] = 256
    """Prompts that are pushed apart together, of those of one part; its last batch may be smaller.
    """
    bank: Annotated[int, Field(ge=0, le=MAX_BANK)] = 2048
    """Negatives drawn from the memory bank of earlier prompts, which holds 16,384; with 0 only the
    batch is used."""
