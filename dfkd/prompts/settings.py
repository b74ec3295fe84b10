"""The settings of the built-in prompt methods (paper, section 3.2)."""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from dfkd.config.paths import local_path
from dfkd.config.plugins import PromptSettings
from dfkd.errors import ManifestError
from dfkd.utils.types import CHECKED, Count, Name, NonNegative, Positive

MAX_BANK = 16384
"""Prompts in the memory bank, over all classes: eight times the paper's draw of 2,048."""

CAPTIONS_FILE = "prompts.captions.file"


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


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Captions(PromptSettings):
    """Texts of one's own, such as a language model writes."""

    made_by = "dfkd.prompts.captions:CaptionPrompts"
    reads = ()

    file: Name
    """JSON Lines: `class`, a name of `classes`, and `text`. A line without `class` serves every
    class, with `{class}` in its text. On a cluster each node needs the file, at the same path."""

    def files(self) -> dict[str, Path]:
        """See `PromptSettings`."""
        path = local_path(self.file)
        if not path.is_file():
            raise ManifestError(CAPTIONS_FILE, "must be an existing file", self.file, "check it")
        return {CAPTIONS_FILE: path}
