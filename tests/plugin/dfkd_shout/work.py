"""What does the work, in the processes that have loaded torch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.config.plan import PromptRow
from dfkd.models.generators.generator import Condition, TextInput
from dfkd.models.teacher import Teacher
from dfkd.prompts.method import PromptBatch, PromptMethod
from dfkd.utils.types import Precision
from dfkd_shout.settings import Colours, Shout


class ShoutedPrompts(PromptMethod):
    """The class prompt in capitals."""

    def __init__(self, manifest: Manifest, teacher: Teacher, settings: Shout) -> None:
        super().__init__(manifest, teacher)
        self.marks = "!" * settings.marks

    def draw(self, rows: Sequence[PromptRow], batch_seed: int) -> PromptBatch:
        """See `PromptMethod.draw`."""
        texts = [row.meaning.upper() + self.marks for row in rows]
        return PromptBatch(texts, self.teacher.encode_text(texts))


class ColourGrid:
    """Latents [B, 3, side, side] in [0, 1] are the colours themselves."""

    text: TextInput | None = None

    def __init__(self, side: int, device: torch.device) -> None:
        self.side, self.device = side, device

    @classmethod
    def load(
        cls, settings: Colours, device: torch.device, precision: Precision, cache: str
    ) -> "ColourGrid":
        """See `GeneratorSettings.load`."""
        return cls(settings.side, device)

    def require(self, teacher: Teacher, image_size: int) -> None:
        """Any teacher and size fit."""

    def init_latents(
        self, seeds: Sequence[int], image_size: int, condition: Condition | None = None
    ) -> Tensor:
        """Random colours, of each image from its own seed."""
        shape = (3, self.side, self.side)
        draws = (torch.Generator().manual_seed(seed) for seed in seeds)
        return torch.stack([torch.rand(shape, generator=draw) for draw in draws]).to(self.device)

    def decode(self, latent: Tensor) -> Tensor:
        """The grid itself, a pixel a cell, which is then resized like any image."""
        return latent

    def constrain(self, latent: Tensor) -> Tensor:
        """Colours from black to white."""
        return latent.clamp_(0, 1)
