"""Checkpoints of a training run: numbered objects, each written at once, tensors only."""

import re
from dataclasses import dataclass

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from dfkd.errors import CorruptionError
from dfkd.storage import Storage

KEEP = 2
"""The newest, and the one before it, which readers on another rank may still be reading."""
NAME = re.compile(r"([0-9]{10})\.safetensors")


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints under one storage prefix, named by the step that they were taken after."""

    storage: Storage

    def newest(self) -> int:
        """The last step that was saved; 0 before the first."""
        steps = self._steps()
        return steps[-1] if steps else 0

    def write(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Save the state after `step` and drop what is older than the last `KEEP`."""
        self.storage.put_if_absent(_key(step), safetensors.torch.save(tensors))
        for old in self._steps()[:-KEEP]:
            self.storage.delete(_key(old))

    def read(self, step: int) -> dict[str, Tensor]:
        """The state after `step`, on the CPU; `CorruptionError` if it is damaged."""
        try:
            tensors: dict[str, Tensor] = safetensors.torch.load(self.storage.get(_key(step)))
        except SafetensorError as error:
            raise CorruptionError(
                f"{self.storage.location(_key(step))}: not a checkpoint ({error}); delete it and "
                "run again, training resumes from the one before"
            ) from None
        return tensors

    def clear(self) -> None:
        """Remove all of them: the run is finished."""
        for step in self._steps():
            self.storage.delete(_key(step))

    def _steps(self) -> list[int]:
        return [int(found[1]) for key in self.storage.list() if (found := NAME.fullmatch(key))]


def _key(step: int) -> str:
    return f"{step:010d}.safetensors"
