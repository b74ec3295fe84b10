"""Latents whose loss has L_bn beside the distance to the prompt (the row "+ L_bn" of Table 5)."""

from collections.abc import Sequence

from torch import Tensor

from dfkd.lab.baselines.batch_norm import Taps, batch_norm_loss, batch_norm_taps
from dfkd.lab.baselines.settings import BatchNorm
from dfkd.models.generators.generator import Condition
from dfkd.synthesis.image_source import OnStep, SourceContext, Synthesised
from dfkd.synthesis.latent_source import LatentSource
from dfkd.synthesis.latents import Synthesiser


class BatchNormSynthesiser(Synthesiser):
    """Adds L_bn of the batch to the loss of each image, so that its relative weight does not depend
    on the batch size. If the loss of one image is no number, its whole batch
    has diverged.
    """

    weight: float
    taps: Taps

    def __call__(
        self,
        targets: Tensor,
        seeds: Sequence[int],
        on_step: OnStep | None = None,
        condition: Condition | None = None,
    ) -> Synthesised:
        """See `Synthesiser`; `ManifestError` if the teacher has no batch norm."""
        with batch_norm_taps(self.teacher, "L_bn") as self.taps:
            return super().__call__(targets, seeds, on_step, condition)

    def losses(self, distances: Tensor) -> Tensor:
        """See `Synthesiser.losses`."""
        # Added to every image, so the sum over the batch keeps the ratio of the two terms.
        return distances + self.weight * batch_norm_loss(self.taps.values)


class BatchNormLatents(LatentSource):
    """A `LatentSource` with L_bn."""

    synthesiser_class = BatchNormSynthesiser

    def __init__(self, context: SourceContext, settings: BatchNorm) -> None:
        super().__init__(context)
        assert isinstance(self.synthesiser, BatchNormSynthesiser)  # noqa: S101
        self.synthesiser.weight = settings.weight
