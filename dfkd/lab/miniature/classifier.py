"""Training of classifiers of drawings, which have the architecture of a student.

The backbone stands for a student's ImageNet weights. The paper's student starts from "the
pre-trained model", and there is no ImageNet of drawings, so it names training drawings, except for
the classes that a student will learn. The judge names the official classes. It has guided no
synthesis, so it can tell whether others than the teacher recognise synthesised images.
"""

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd.config.distillation import Distillation
from dfkd.lab.miniature.drawings import Cache, DrawingRow, random_images
from dfkd.lab.miniature.painting import SIZE
from dfkd.lab.miniature.recipe import ClassifierRecipe
from dfkd.lab.miniature.training import Resumable, cosine, rise
from dfkd.models.student import build
from dfkd.utils.device import CPU, autocast


class LabelledBatches:
    """Painted drawings with labels; batch `step` depends only on (seed, step)."""

    def __init__(
        self,
        cache: Cache,
        by_class: Sequence[Sequence[DrawingRow]],
        default_share: float,
        seed: int,
    ) -> None:
        """A label is an index of `by_class`, and each class is equally likely."""
        self.cache, self.by_class = cache, by_class
        self.default_share, self.seed = default_share, seed

    def draw(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """The batch of a step: images float32 [size, 3, 64, 64] in [0, 1], labels int64 [size]."""
        rng = np.random.default_rng((self.seed, step))
        labels = rng.integers(len(self.by_class), size=size)
        drawings = [self.by_class[int(label)] for label in labels]
        sampled = [rows[int(rng.integers(len(rows)))] for rows in drawings]
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        images = random_images(self.cache, sampled, self.default_share, generator)
        return images, torch.from_numpy(labels)


class ClassifierTrainer(Resumable):
    """Trains the classifier; `run` resumes from the last checkpoint in `folder`."""

    parts = ("network", "optimizer")

    recipe: ClassifierRecipe

    def __init__(
        self, recipe: ClassifierRecipe, batches: LabelledBatches, folder: Path, seed: int
    ) -> None:
        self.recipe, self.batches = recipe, batches
        config = Distillation(student=(recipe.architecture,), weights=("none",), warmup_epochs=0)
        network = build(config, len(batches.by_class), SIZE, seed)
        self.network: nn.Module = network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), weight_decay=recipe.weight_decay
        )
        self.path = folder / "classifier.pt"

    def update(self) -> str:
        """One training step; returns the accuracy on its batch."""
        images, labels = self.batches.draw(self.step, self.recipe.batch_size)
        for group in self.optimizer.param_groups:
            factor = rise(self.step, self.recipe.rising_steps) * cosine(
                self.step, self.recipe.steps
            )
            group["lr"] = self.recipe.learning_rate * factor
        # A third of the time of float32 on a CPU with bfloat16 instructions, at the same accuracy.
        with autocast(CPU, "bfloat16"):
            logits = self.network(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return f"{(logits.argmax(1) == labels).float().mean():.3f} of its drawings named"


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Accuracy, 0-1, of the network on images [N, 3, H, W] in [0, 1] with labels int64 [N]."""
    predictions = [network(part).argmax(1) for part in images.split(256)]
    return float((torch.cat(predictions) == labels).float().mean())


def save(network: nn.Module, path: Path, architecture: str, classes: Sequence[str]) -> Path:
    """Write the network's state dict, as a student's; returns the path.

    The metadata are `architecture` and `classes`, a JSON list. Equal arguments give equal bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
    metadata = {"architecture": architecture, "classes": json.dumps(list(classes))}
    data = safetensors.torch.save(tensors, metadata)
    # The library leaves the order of the metadata to chance. It matters, because names of students
    # and cells contain the hash of the whole file. The length of the JSON header comes first.
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    path.write_bytes(data[:8] + text.ljust(length) + data[8 + length :])
    return path
