"""The judge of a study: a classifier that guided no synthesis names the synthesised images.

Its file, which `dfkd pretrain --only judge` writes, is a safetensors state dict of a
student's network. The metadata has `architecture` and `classes`, a JSON list of names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, Json, ValidationError
from safetensors import SafetensorError, safe_open
from torch import nn

from dfkd.config.distillation import Distillation
from dfkd.config.hashing import sha256_file
from dfkd.dataset.loader import Stream
from dfkd.dataset.published import PublishedVersion
from dfkd.errors import ManifestError, WeightsError
from dfkd.evaluation.data import Domains
from dfkd.evaluation.scoring import decode_items
from dfkd.models.student import build
from dfkd.models.weights.reading import load_into, match, read_state_dict
from dfkd.utils.pixels import from_batch, from_bytes
from dfkd.utils.types import Name, require_unique

_REMEDY = "run dfkd pretrain with --only judge, which writes one"


class _Metadata(BaseModel):
    """What the file of a judge says about itself."""

    architecture: Name
    classes: Json[tuple[Name, ...]]


@dataclass(frozen=True)
class Judge:
    """A trained classifier of images."""

    network: nn.Module
    """Pixels float32 [N, 3, H, W] in [0, 1] to logits [N, number of classes]; in eval mode."""
    classes: tuple[str, ...]
    """Names in the order of the logits."""
    sha256: str
    """Hash of its file, 64 hexadecimal digits."""
    device: torch.device

    @torch.no_grad()
    def accuracy(self, data: Domains, image_size: int, threads: int) -> float:
        """Share of labelled images, 0-1, that it names; unreadable images are left out.

        Args:
            image_size: width and height at which it sees them, in pixels.
            threads: threads that decode images; 0 means one for each processor.
        """
        positions = [self.classes.index(name) for name in data.classes]
        hits = list[bool]()
        for items, images in decode_items(data.items, image_size, threads):
            read = [(i, image) for i, image in enumerate(images) if not isinstance(image, str)]
            if read:
                pixels = torch.from_numpy(np.stack([image for _, image in read]))
                answers = self.network(from_bytes(pixels.to(self.device))).argmax(1).tolist()
                labels = [positions[items[i].class_index] for i, _ in read]
                hits += [a == b for a, b in zip(answers, labels, strict=True)]
        return sum(hits) / max(1, len(hits))

    @torch.no_grad()
    def recognised(self, version: PublishedVersion, image_size: int) -> float:
        """Share of a data set's images, 0-1, whose largest logit is that of their own class.

        Raises:
            CorruptionError: an image is not what was published.
        """
        positions = torch.tensor([self.classes.index(name) for name in version.classes])
        hits = []
        # Batches of one image, because a stream leaves out the images that do not fill a batch.
        for batch in Stream(version, image_size, 1, seed=0).batches(0):
            logits = self.network(from_batch(batch.pixels, self.device))
            hits.append(logits.argmax(1).cpu() == positions[batch.labels])
        return float(torch.cat(hits).double().mean())


def read_judge(
    source: str, classes: Sequence[str], image_size: int, device: torch.device
) -> Judge | None:
    """The judge in the file `source`; None if that is empty.

    Args:
        classes: names that the judge must know; it may know more.
        image_size: width and height of the images, in pixels.

    Raises:
        ManifestError: the file is no judge's, or the judge does not know a class.
    """
    if not source:
        return None
    path = Path(source)
    try:
        with safe_open(path, "pt") as file:
            metadata = _Metadata.model_validate(file.metadata() or {})
    except (OSError, SafetensorError, ValidationError):
        raise WeightsError(
            "judge",
            "must be a safetensors file whose metadata has architecture and classes, a JSON list",
            source,
            _REMEDY,
        ) from None
    require_unique(f"judge: classes of {source}", metadata.classes)
    if unknown := [name for name in classes if name not in metadata.classes]:
        raise ManifestError(
            "judge",
            f"must know every class of the study, and knows {', '.join(metadata.classes)}",
            unknown,
            "change the study's classes, name another judge, or remove the key",
        )
    config = Distillation(student=(metadata.architecture,), weights=("none",), warmup_epochs=0)
    try:
        # Without memory first: a small file may name an architecture of any size.
        with torch.device("meta"):
            expected = build(config, len(metadata.classes), image_size, seed=0)
    except ManifestError as error:  # it names the key of a student
        raise WeightsError(
            "judge", f"must have a student's architecture ({error})", str(path), _REMEDY
        ) from None
    state = read_state_dict("judge", path)
    match("judge", path, state, expected.state_dict(), _REMEDY)
    network = build(config, len(metadata.classes), image_size, seed=0)
    load_into("judge", path, network, state)
    return Judge(network.eval().to(device), metadata.classes, sha256_file(path), device)
