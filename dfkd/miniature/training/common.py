"""What the trainings share: checkpoints, learning rates, and the input of the teacher's tower."""

import math
from pathlib import Path
from typing import Any, ClassVar

import open_clip
import torch
from torch import Tensor

from dfkd.miniature.work_folder import Log, Stateful, load_checkpoint, save_checkpoint

_MEAN = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
"""CLIP's mean and standard deviation of RGB in [0, 1], as [1, 3, 1, 1]."""
_STD = torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1)


class Resumable:
    """A training that continues from its last checkpoint."""

    saved: ClassVar[tuple[str, ...]] = ("step",)
    """The attributes that a checkpoint holds beside the `parts`."""
    log: Log
    path: Path
    """The checkpoint's file, named after what is trained."""
    step: int

    @property
    def parts(self) -> dict[str, Stateful]:
        """The networks and optimizers."""
        raise NotImplementedError

    def save(self) -> None:
        """Write a checkpoint."""
        save_checkpoint(self.path, self.parts, **{name: getattr(self, name) for name in self.saved})

    def resume(self) -> None:
        """Take over the last checkpoint, if there is one."""
        if values := load_checkpoint(self.path, self.parts):
            for name in self.saved:
                setattr(self, name, values[name])
            self.log(f"{self.path.stem} resumes at step {self.step}")


def training_scores(step: int, batch_size: int, seconds: float) -> dict[str, Any]:
    """The length of a training, for `scores.json`."""
    return {
        "steps": step,
        "images_seen": step * batch_size,
        "hours": round(seconds / 3600, 2),
    }


def rise(step: int, steps: int) -> float:
    """Factor of a learning rate that rises linearly to 1 in so many steps, at a 0-based step."""
    return min(1.0, (step + 1) / steps)


def cosine(step: int, steps: int) -> float:
    """Factor of a learning rate that falls from 1 to 0 along a cosine, at a 0-based step."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def normalised(images: Tensor) -> Tensor:
    """Images [N, 3, H, W] in [0, 1] as the teacher's image tower takes them."""
    return (images - _MEAN) / _STD
