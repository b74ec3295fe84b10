"""What the trainings share: checkpoints, learning rates, and the input of the teacher's tower."""

import math
import os
from pathlib import Path
from typing import Any, ClassVar

import open_clip
import torch
from torch import Tensor

from dfkd.miniature.work_folder import Log

_MEAN = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
"""CLIP's mean and standard deviation of RGB in [0, 1], as [1, 3, 1, 1]."""
_STD = torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1)


class Resumable:
    """A training that continues from its last checkpoint."""

    parts: ClassVar[tuple[str, ...]]
    """The attributes that are networks and optimizers; a checkpoint holds their states."""
    saved: ClassVar[tuple[str, ...]] = ("step",)
    """The attributes that a checkpoint holds as they are."""
    log: Log
    path: Path
    """The checkpoint's file, named after what is trained."""
    step: int

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
