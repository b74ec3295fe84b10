"""The second training of the teacher's image tower: to know objects in every look.

The text tower is locked (Zhai et al., 2022, lock the image tower), so prompts, pseudo-words and the
diffusion model, which is conditioned on texts, stay as they are. Beside CLIP's loss there is one
about names alone:

    loss = CLIP's + w * mean over images of -log softmax_n(scale * cos(image, "a NAME_n"))[own name]

over all names n of the batch. The first training left objects to the default look: captions of
other looks tell the look in most cases, and the tower read that first. On validation drawings in
random looks it named 53 % of 70 classes, and 77 % in the default look.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfkd.lab.miniature.captions import Captioner, names
from dfkd.lab.miniature.drawings.sampling import Batches
from dfkd.lab.miniature.recipe import TeacherRecipe, TowerRecipe
from dfkd.lab.miniature.training.teacher import CaptionedBatch, TeacherTrainer


@dataclass(frozen=True)
class NamedBatch(CaptionedBatch):
    """A batch, and the names of its objects."""

    name_ids: Tensor
    """Token ids of "a NAME" for each name in the batch, int64 [N, L]."""
    named: Tensor
    """Which names an image's object has: 1 or 0, float32 [B, N]."""


class TowerTrainer(TeacherTrainer):
    """Trains the image tower; `run` resumes from the last checkpoint in `folder`.

    Args:
        teacher: of the first training.
        state: the exported weights of the first training.
    """

    name = "tower"

    def __init__(
        self,
        recipe: TowerRecipe,
        teacher: TeacherRecipe,
        state: dict[str, Tensor],
        batches: Batches,
        captioner: Captioner,
        folder: Path,
        seed: int,
    ) -> None:
        settings = dataclasses.replace(
            teacher, steps=recipe.steps, learning_rate=recipe.learning_rate
        )
        super().__init__(settings, batches, captioner, folder, seed)
        self.names_weight = recipe.names_weight
        for network in (self.model, self.average):
            network.load_state_dict(state)
        for name, weight in self.model.named_parameters():
            weight.requires_grad_(name.startswith("visual."))

    def strength(self, step: int) -> float:
        """Full difficulty from the start: the tower has learned before."""
        return 1.0

    def batch(self, step: int) -> NamedBatch:
        """See `TeacherTrainer.batch`."""
        batch = super().batch(step)
        found = sorted({row.concept for row in batch.rows})
        place = {name: i for i, name in enumerate(found)}
        named = torch.zeros(len(batch.rows), len(found))
        for i, row in enumerate(batch.rows):
            # Synonyms of the own name are right too, if the batch has them.
            named[i, [place[name] for name in names(row) if name in place]] = 1
        words = [["a", *name.split()] for name in found]
        ids = self.captioner.tokens(words, self.recipe.usual_length)
        fields: dict[str, Any] = dict(vars(batch))
        return NamedBatch(**fields, name_ids=ids, named=named)

    @torch.no_grad()
    def texts(self, ids: Tensor) -> Tensor:
        """See `TeacherTrainer.texts`; without gradients, because the text tower is locked."""
        return super().texts(ids)

    def loss(self, image: Tensor, batch: CaptionedBatch) -> Tensor:
        """CLIP's loss and that of names, a scalar, from the embeddings [B, E] of the images."""
        assert isinstance(batch, NamedBatch)  # noqa: S101 - of this class's `batch`
        logits = self.scale * image @ self.texts(batch.name_ids).T
        target = batch.named / batch.named.sum(1, keepdim=True)
        of_names = -(target * logits.log_softmax(1)).sum(1).mean()
        return super().loss(image, batch) + self.names_weight * of_names
