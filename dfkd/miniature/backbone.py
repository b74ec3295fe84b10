"""A classifier of training icons, which plays the role of ImageNet weights for the student.

The paper's student starts from "the pre-trained model". The miniature world has no ImageNet, so
this recipe trains a torchvision ResNet to name training icons in many styles. The classes that a
student will learn are left out. The result is a file for `distillation.weights`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd.miniature.looks.look import LookSampler
from dfkd.miniature.recipe import BackboneRecipe
from dfkd.miniature.rendering import Cache, IconRow, painted
from dfkd.models.student import IMAGENET_MEAN, IMAGENET_STD
from dfkd.utils.device import seeded

#: Share of monochrome icons that are painted black on white.
_DEFAULT_SHARE = 0.4


class IconBatches:
    """An endless stream of painted icons with labels; batch `step` depends only on (seed, step)."""

    def __init__(
        self, cache: Cache, rows: Sequence[IconRow], nouns: Sequence[str], seed: int
    ) -> None:
        """Uses the rows whose name is one of `nouns`; each noun is drawn equally often."""
        self.cache, self.seed = cache, seed
        self.named = [[row for row in rows if row.concept == noun] for noun in nouns]

    def draw(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """Images float32 [size, 3, 64, 64] in [0, 1] and labels int64 [size]."""
        rng = np.random.default_rng((self.seed, step))
        labels = rng.integers(len(self.named), size=size)
        sampled = [self.named[label][rng.integers(len(self.named[label]))] for label in labels]
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        sampler = LookSampler(generator)
        looks = [sampler.draw(row.colour, _DEFAULT_SHARE) for row in sampled]
        return painted(self.cache, sampled, looks, generator), torch.from_numpy(labels)


class BackboneTrainer:
    """A classifier in training; `run` resumes from the last checkpoint in `folder`."""

    def __init__(
        self, recipe: BackboneRecipe, batches: IconBatches, folder: Path, seed: int
    ) -> None:
        self.recipe, self.batches, self.step = recipe, batches, 0
        with seeded(seed):
            network: nn.Module = torchvision.models.get_model(
                recipe.architecture, weights=None, num_classes=len(batches.named)
            )
        self.network = network.train()
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), weight_decay=recipe.weight_decay
        )
        self.path = folder / f"{recipe.architecture}.pt"
        self._resume()

    def run(self, log: Callable[[str], None]) -> nn.Module:
        """Train to the end; returns the network in evaluation mode."""
        recipe = self.recipe
        accuracies: list[float] = []
        while self.step < recipe.steps:
            accuracies.append(self._advance())
            if self.step % recipe.checkpoint_every == 0 or self.step == recipe.steps:
                correct = sum(accuracies) / len(accuracies)
                log(f"{recipe.architecture} step {self.step}: {correct:.3f} of its icons named")
                self._save()
                accuracies.clear()
        return self.network.eval()

    def _advance(self) -> float:
        """One training step; returns the accuracy on its batch, 0-1."""
        images, labels = self.batches.draw(self.step, self.recipe.batch_size)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * _rate_factor(self.step, self.recipe)
        logits = self.network(normalised(images))
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return float((logits.argmax(1) == labels).float().mean())

    def _save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        partial = self.path.with_name(self.path.name + ".part")
        torch.save(state, partial)
        os.replace(partial, self.path)

    def _resume(self) -> None:
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]


def normalised(images: Tensor) -> Tensor:
    """Images [N, 3, H, W] in [0, 1], normalised like a student's input."""
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Accuracy of the network on images [N, 3, H, W] in [0, 1] with labels [N]."""
    answers = [network(normalised(part)).argmax(1) for part in images.split(256)]
    return float((torch.cat(answers) == labels).float().mean())


def save(network: nn.Module, path: Path) -> Path:
    """Write the network as a torchvision state dict; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    return path


def _rate_factor(step: int, recipe: BackboneRecipe) -> float:
    """Factor of the learning rate at a 0-based step: a linear rise and a cosine."""
    rise = min(1.0, (step + 1) / recipe.rising_steps)
    return rise * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
