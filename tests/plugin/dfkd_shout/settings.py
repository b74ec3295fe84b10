"""What a manifest may set; it imports no torch, so that a mistake is refused at once."""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from dfkd.config.plugins import GeneratorSettings, PromptSettings
from dfkd.utils.types import CHECKED, Count, Positive


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Shout(PromptSettings):
    """Class names in capital letters."""

    made_by = "dfkd_shout.work:ShoutedPrompts"

    marks: Annotated[int, Field(ge=0, le=5)] = 1
    """Exclamation marks behind the name."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Colours(GeneratorSettings):
    """A grid of colours, which are the latent."""

    made_by = "dfkd_shout.work:ColourGrid"

    side: Count
    """Cells of a row."""
    steps: Count = 2
    """Optimisation steps of each image."""
    learning_rate: Positive = 0.1
    """Adam's learning rate for the colours."""

    @property
    def optimisation_steps(self) -> int:
        """See `GeneratorSettings`."""
        return self.steps

    @property
    def latent_rate(self) -> float:
        """See `GeneratorSettings`."""
        return self.learning_rate

    def files(self, cache: str) -> dict[str, Path]:
        """None: it has no weights."""
        return {}
