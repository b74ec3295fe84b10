"""What the trainings share: loop, checkpoints, averages, rates, and the teacher's input."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import open_clip
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import normalize

_LOGGED = 50
"""Steps between two lines of progress."""


def log(text: str) -> None:
    """Print a line of progress with the time."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


class Resumable:
    """A training that continues from its last checkpoint."""

    parts: ClassVar[tuple[str, ...]]
    """The attributes that are networks and optimizers; a checkpoint holds their states."""
    saved: ClassVar[tuple[str, ...]] = ("step", "seconds")
    """The attributes that a checkpoint holds as they are."""
    recipe: Any
    """The section of the recipe: it has `steps`, `batch_size` and `checkpoint_every`."""
    path: Path
    """The checkpoint's file, named after what is trained."""
    step: int = 0
    seconds: float = 0.0

    def update(self) -> str:
        """Make the step `step`; returns its losses, for the log."""
        raise NotImplementedError

    def run(self, checked: Callable[[], None] = lambda: None) -> None:
        """Train from the last checkpoint to the last step.

        Args:
            checked: called before each checkpoint is written.
        """
        self.resume()
        steps = self.recipe.steps
        while self.step < steps:
            begun = time.monotonic()
            losses = self.update()
            self.step += 1
            self.seconds += time.monotonic() - begun
            if self.step % _LOGGED == 0:
                pace = f"{self.seconds / self.step:.2f} s/step"
                log(f"{self.path.stem} step {self.step}/{steps} {losses} {pace}")
            if self.step % self.recipe.checkpoint_every == 0 or self.step == steps:
                checked()
                self.save()

    def save(self) -> None:
        """Write a checkpoint; a kill leaves the earlier one in place."""
        state = {name: getattr(self, name).state_dict() for name in self.parts}
        state |= {name: getattr(self, name) for name in self.saved}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + ".part")
        torch.save(state, partial)
        os.replace(partial, self.path)

    def resume(self) -> None:
        """Take over the last checkpoint, if there is one."""
        if not self.path.exists():
            return
        state: dict[str, Any] = torch.load(self.path, weights_only=True)
        for name in self.parts:
            getattr(self, name).load_state_dict(state[name])
        for name in self.saved:
            setattr(self, name, state[name])
        log(f"{self.path.stem} resumes at step {self.step}")

    def scores(self) -> dict[str, Any]:
        """The length of the training, for `scores.json`."""
        return {
            "steps": self.step,
            "images_seen": self.step * self.recipe.batch_size,
            "hours": round(self.seconds / 3600, 2),
        }


@torch.no_grad()
def move_average(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move the exponential moving average of a network's weights towards them, at a 0-based step.

    Args:
        average: the network that holds the averages.
        decay: of the average.
    """
    # A short memory at first, so that the average forgets the random initial weights.
    weight = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), weight)
    # Batch norm's statistics are averaged too; the attention mask is a buffer that is constant.
    for old, new in zip(average.buffers(), network.buffers(), strict=True):
        if old.is_floating_point() and old.ndim == 1:
            old.lerp_(new, weight)


def rise(step: int, steps: int) -> float:
    """Factor of a learning rate that rises linearly to 1 in so many steps, at a 0-based step."""
    return min(1.0, (step + 1) / steps)


def cosine(step: int, steps: int) -> float:
    """Factor of a learning rate that falls from 1 to 0 along a cosine, at a 0-based step."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def normalised(images: Tensor) -> Tensor:
    """Images [N, 3, H, W] in [0, 1] as the teacher's image tower takes them, float32."""
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    normal: Tensor = normalize(images.float(), [*mean], [*std])
    return normal
