"""A version of a chained method: its parts are made in order, and storage keeps what they carry.

After each part the state that the next one starts from is written, and so a killed run costs the
part at work. A state holds tensors alone (safetensors) with their sha256, which a reader checks.
"""

import io
from collections.abc import Container, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.config.plan import Unit, part_count, parts, units
from dfkd.dataset.shards import read_shard
from dfkd.dataset.versions import Version
from dfkd.storage.checkpoints import Checkpoints


@dataclass(frozen=True)
class Chain:
    """The parts of a version of a chained method."""

    version: Version

    @property
    def states(self) -> Checkpoints:
        """What the run carries, by the number of parts that are made."""
        return Checkpoints(self.version.storage.child("state"))

    def units(self, manifest: Manifest, done: Container[str]) -> Iterator[Unit | None]:
        """The parts that are left, from the newest state on; None while the one before is at work.

        A part that lacks no task is made again if its state is gone, as when a regeneration carries
        it over, or a run was killed before it wrote the state.
        """
        left = {unit.part: unit for unit in units(manifest, done)}
        if not left:
            return
        if self.states.newest() > min(left):
            self.states.clear()  # somebody has removed a receipt: begin anew
        first = self.states.newest()
        numbered = enumerate(parts(manifest))
        for part, together in islice(numbered, first, max(left) + 1):
            while part > first and self.states.newest() < part:
                yield None
            yield left.get(part) or Unit((), together)

    def keep(self, manifest: Manifest, part: int, state: dict[str, Tensor]) -> None:
        """Write what a part has left to the next, once its tasks have their receipts."""
        if part + 1 < part_count(manifest):
            self.states.write(part + 1, state)

    def images(self, manifest: Manifest, part: int) -> Tensor:
        """The images of a finished part, uint8 [N, H, W, 3], in the order of class and index.

        Raises:
            CorruptionError: a shard is not what its receipt says.
        """
        (together,) = islice(parts(manifest), part, part + 1)
        receipts = [self.version.receipt(task) for task in together]
        pictures = [
            np.asarray(Image.open(io.BytesIO(sample.image)).convert("RGB"))
            for receipt in receipts
            for sample in read_shard(self.version.home.get(receipt.key), receipt)
        ]
        return torch.from_numpy(np.stack(pictures))

    def close(self, manifest: Manifest, failure: str) -> dict[str, str]:
        """Drop the states if every task is done.

        Args:
            failure: why a part could not be made, if one could not.

        Returns:
            That reason for each task that is not done: no part can be made after it.
        """
        left = [task.id for unit in units(manifest, self.version.done()) for task in unit.tasks]
        if not left:
            self.states.clear()
        return dict.fromkeys(left, failure) if failure else {}
