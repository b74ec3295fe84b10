"""Training targets of a student: a labeller's distances to the class texts, or its embedding.

Several labellers k = 1 ... K are an ensemble, the mean of their standardised distances:

    1/K sum_k (d_k - m_k) / s_k  =  a (sum_k w_k d_k) + b,    w_k = (1 / s_k) / sum_j (1 / s_j)

with mean m_k and standard deviation s_k of the distances of k on the version. The factor a and the
shift b are the same for every image and class, so the targets are the weighted mean in brackets,
which is a distance like that of one labeller.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_eval

from dfkd.config.manifest import Manifest
from dfkd.config.synthesis import TeacherConfig
from dfkd.models.labeller import Labeller, check_classes, distances, errors_name
from dfkd.prompts.styles import (
    check_styled_prompts,
    class_text_embeddings,
    style_text_embeddings,
)

TargetFunction = Callable[[Tensor], Tensor]
"""Maps views [B, 3, H, W] float32 in [0, 1] to a labeller's distances [B, M] or embeddings [B, E],
float32."""


@dataclass(frozen=True)
class Ensemble:
    """One or more labellers."""

    labellers: Sequence[Labeller]
    texts: Sequence[Tensor]
    """Unit text embeddings [M, E] of the classes, of each labeller."""
    weights: Sequence[float] = (1.0,)
    """w_k of each labeller; their sum is 1."""

    def distances(self, pixels: Tensor) -> Tensor:
        """The weighted mean [B, M] of distances of pixels [B, 3, H, W] to the class texts.

        Each labeller resizes and normalises the pixels in its own way.
        """
        found = [
            weight * distances(labeller.encode_image(pixels), texts)
            for labeller, texts, weight in zip(
                self.labellers, self.texts, self.weights, strict=True
            )
        ]
        return torch.stack(found).sum(dim=0)

    @property
    def temperature(self) -> float:
        """The weighted mean of 1 / logit scale."""
        scales = zip(self.labellers, self.weights, strict=True)
        return sum(weight / labeller.logit_scale for labeller, weight in scales)


def target_function(
    manifest: Manifest, device: torch.device, weights: Sequence[float] = (1.0,)
) -> TargetFunction | None:
    """The targets of augmented views; None for what the shards store.

    Args:
        weights: of the labellers, from `LabelMoments.weights` if there are several.

    Raises:
        ManifestError: see `target_embeddings`.
        WeightsError: a labeller's files are missing or damaged.
    """
    if manifest.distillation.stored_labels:
        return None
    ensemble = load_ensemble(manifest, device, weights)
    for labeller in ensemble.labellers:
        fold_batch_norms(labeller.visual)
    if manifest.distillation.embeds:
        return ensemble.labellers[0].encode_image
    return ensemble.distances


def load_ensemble(
    manifest: Manifest,
    device: torch.device,
    weights: Sequence[float] = (1.0,),
    *,
    plain: bool = False,
) -> Ensemble:
    """The labellers of a manifest with the texts of its classes.

    They run in float32: distances to different classes differ by a few hundredths, and bfloat16 has
    steps of 0.004 near their usual value.

    Args:
        weights: of the labellers, from `LabelMoments.weights` if there are several.
        plain: take the class prompts, whatever `distillation.texts` says.

    Raises:
        ManifestError, WeightsError: as `target_function`.
    """
    labellers, texts = [], []
    for config in manifest.labellers.values():
        labeller = load_labeller(manifest, config, device)
        encode = class_text_embeddings if plain else target_embeddings
        labellers.append(labeller)
        texts.append(encode(manifest, labeller, config.template))
    return Ensemble(labellers, texts, weights)


def load_labeller(manifest: Manifest, config: TeacherConfig, device: torch.device) -> Labeller:
    """A model that can tell the classes apart, in float32.

    Args:
        config: one of `Manifest.labellers`.

    Raises:
        ManifestError: it cannot read or distinguish the class names.
        WeightsError: its files are missing or damaged.
    """
    section = "teacher" if config == manifest.teacher else "distillation.labeller"
    with errors_name(section):
        labeller = Labeller.load(config, device, cache=manifest.cache)
        check_classes(labeller, manifest.meanings, config.template)
    return labeller


def target_embeddings(manifest: Manifest, labeller: Labeller, template: str = "") -> Tensor:
    """The unit text embeddings float32 [M, E] that images are compared with.

    With `distillation.texts: template` they are the class prompts (equation 4), with `styles` an
    ensemble: each class' mean over its class prompt and the styles of the dictionary.

    Raises:
        ManifestError: a prompt in a style is longer than the labeller's context.
    """
    plain = class_text_embeddings(manifest, labeller, template)
    if manifest.distillation.texts == "template":
        return plain
    check_styled_prompts(manifest, labeller)
    styled = torch.stack(
        [style_text_embeddings(manifest, labeller, each) for each in manifest.meanings]
    )
    # A mean of unit vectors is shorter than 1, but spherical distances need unit vectors.
    return F.normalize(torch.cat([styled, plain[:, None]], dim=1).mean(dim=1), dim=1)


def fold_batch_norms(tower: nn.Module) -> None:
    """Put the batch norms of a CLIP's ResNet in eval mode into the convolutions before them.

    Its outputs stay the same up to rounding, and it no longer reads and writes all features once
    more for each norm. Other towers are left alone, because names of modules do not tell whether a
    norm comes right after a convolution.
    """
    if not isinstance(tower, ModifiedResNet):
        return
    pairs = [(f"conv{number}", f"bn{number}") for number in (1, 2, 3)] + [("0", "1")]
    for module in list(tower.modules()):
        children = dict(module.named_children())
        for convolution, norm in pairs:
            if isinstance(children.get(norm), nn.BatchNorm2d):
                folded = fuse_conv_bn_eval(children[convolution], children[norm])
                setattr(module, convolution, folded)
                setattr(module, norm, nn.Identity())
