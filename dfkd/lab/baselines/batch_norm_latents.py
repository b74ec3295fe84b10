"""Latents whose loss has L_bn beside the distance to the prompt (the row "+ L_bn" of Table 5)."""

from collections.abc import Sequence

from torch import Tensor

from dfkd.lab.baselines.batch_norm import Taps, batch_norm_loss, batch_norm_taps
from dfkd.lab.baselines.settings import BatchNorm
from dfkd.prompts.conditions import StoredPrompt
from dfkd.synthesis.image_source import SourceContext, Synthesised
from dfkd.synthesis.latents import LatentSource


class BatchNormLatents(LatentSource):
    """Adds L_bn of the batch to the loss of each image, so that its relative weight does not depend
    on the batch size. If the loss of one image is no number, its whole batch
    has diverged.
    """

    taps: Taps

    def __init__(self, context: SourceContext, settings: BatchNorm) -> None:
        super().__init__(context)
        self.weight = settings.weight

    def make(self, prompts: Sequence[StoredPrompt], seeds: Sequence[int]) -> Synthesised:
        """See `ImageSource.make`; `ManifestError` if the teacher has no batch norm."""
        with batch_norm_taps(self.teacher, "L_bn") as self.taps:
            return super().make(prompts, seeds)

    def losses(self, distances: Tensor) -> Tensor:
        """See `LatentSource.losses`."""
        # Added to every image, so the sum over the batch keeps the ratio of the two terms.
        return distances + self.weight * batch_norm_loss(self.taps.values)
