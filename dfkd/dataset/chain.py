"""A version of a chained method: parts are made in order, and storage keeps the state between them.

The state is written after each part, so a killed run loses only the part in progress. A state holds
tensors only (safetensors), with their sha256, which a reader checks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.config.plan import Unit, part_count, parts, units
from dfkd.dataset.shards import get_shard, read_shard
from dfkd.dataset.versions import Version
from dfkd.storage import layout
from dfkd.storage.checkpoints import Checkpoints
from dfkd.utils.images import decode_image


@dataclass(frozen=True)
class Chain:
    """The parts of a version of a chained method."""

    version: Version

    @property
    def states(self) -> Checkpoints:
        """The carried states; state `n` is what part `n` starts from."""
        return Checkpoints(self.version.storage.child(layout.STATES))

    def units(self, manifest: Manifest) -> Iterator[Unit | None]:
        """Yield the remaining parts, from the newest state on; None while the previous part runs.

        A part whose tasks are all done is made again if its state is missing. That happens when a
        regeneration carries the part over, or when a run was killed before it wrote the state.
        """
        # The state comes first: a second driver may finish a part in between, whose receipts are
        # written before its state.
        newest = self.states.newest()
        remaining = {unit.part: unit for unit in units(manifest, self.version.done())}
        if not remaining:
            return
        if newest > min(remaining):
            # A receipt was deleted after its part had finished. Old states are not kept, so the
            # chain starts again from its first part.
            self.states.clear()
        first = self.states.newest()
        numbered = enumerate(parts(manifest))
        for part, tasks in islice(numbered, first, max(remaining) + 1):
            # The pool draws a unit ahead, while the part before it is still being made.
            while part > first and self.states.newest() < part:
                yield None
            # A unit without missing tasks writes no shard and only rebuilds the state.
            yield remaining.get(part) or Unit((), tasks)

    def keep(self, manifest: Manifest, part: int, state: dict[str, Tensor]) -> None:
        """Write the state after a part; call it when all tasks of the part have receipts."""
        if part + 1 < part_count(manifest):
            self.states.write(part + 1, state)

    def images(self, manifest: Manifest, part: int) -> Tensor:
        """The images of a finished part, uint8 [N, H, W, 3], ordered by class and index.

        Raises:
            CorruptionError: a shard does not match its receipt, or an image cannot be decoded.
        """
        (tasks,) = islice(parts(manifest), part, part + 1)
        receipts = [self.version.receipt(task) for task in tasks]
        home, size = self.version.home, manifest.synthesis.image_size
        images = [
            sample.decoded(lambda image: decode_image(image, size))
            for receipt in receipts
            for sample in read_shard(get_shard(home, receipt), receipt)
        ]
        return torch.from_numpy(np.stack(images))

    def blocked(self, manifest: Manifest, reason: str) -> dict[str, str]:
        """`reason`, for which a part failed, for each unfinished task: no part can follow it."""
        unfinished = (
            task.id for unit in units(manifest, self.version.done()) for task in unit.tasks
        )
        return dict.fromkeys(unfinished, reason)
