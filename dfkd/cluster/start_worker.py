"""The start network of a version: trained segment after segment, so that a kill costs one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from dfkd.amortised import Trainer
from dfkd.catalogue import START_KEY
from dfkd.checkpoints import Checkpoints
from dfkd.cluster.worker import Purse, Worker, pool_of
from dfkd.dataset import Version
from dfkd.errors import DfkdError
from dfkd.manifest import Manifest
from dfkd.plan import has_start, part_count, part_name, training_steps
from dfkd.progress import bar
from dfkd.synthesis import Synthesiser

SEGMENT = 100
"""Steps between two checkpoints."""

PROMPTS = 1 << 16
"""Prompts that a network is trained on at the most, of parts that are spread over the run."""


@dataclass(frozen=True)
class Segment:
    """Some steps of the training: the unit of work of a `StartWorker`."""

    first: int
    last: int

    @property
    def id(self) -> str:
        """Its name in messages."""
        return f"start network, steps {self.first} to {self.last}"


class StartWorker(Worker):
    """Trains the network; a new one takes up where a dead one left."""

    def work(self, unit: Segment) -> int:
        """Train a segment, then write a checkpoint or the finished network; returns its steps."""
        checkpoints = _checkpoints(self.version)
        if self._maker is None or self._maker.step != unit.first:
            self._maker = self._trainer()
            if unit.first:
                self._maker.restore(unit.first, checkpoints.read(unit.first))
        trainer: Trainer = self._maker
        trainer.advance(unit.last)
        if unit.last == trainer.total:
            self.version.storage.put_if_absent(START_KEY, trainer.start.save())
        else:
            checkpoints.write(unit.last, trainer.state())
        return unit.last - unit.first

    def _trainer(self) -> Trainer:
        generator = self.load_generator()
        assert generator is not None  # noqa: S101 - methods without latents have no network
        synthesiser = Synthesiser(self.load_teacher(), generator, self.manifest.synthesis)
        return Trainer(self.manifest, synthesiser, self._prompts().to(generator.codebook.device))

    def _prompts(self) -> Tensor:
        """Unit embeddings [N, E]."""
        total = part_count(self.manifest)
        first: Any = self._embeddings(0)
        stride = max(1, -(-total * len(first) // PROMPTS))
        rest = [self._embeddings(part) for part in range(stride, total, stride)]
        return torch.from_numpy(np.concatenate([first, *rest]))

    def _embeddings(self, part: int) -> Any:
        table: pa.Table = self.version.prompt_part(part_name(part))
        return np.stack(table["embedding"].to_numpy())


def write_start(manifest: Manifest, version: Version, purse: Purse) -> None:
    """The network that the manifest asks for, if it does; resumes what is there."""
    if not has_start(manifest):
        return
    if version.storage.exists(START_KEY):
        _checkpoints(version).clear()  # of a run that was killed right after it had finished
        return
    total, begun = training_steps(manifest), _checkpoints(version).newest()
    rows = manifest.synthesis.amortised.batch_size
    with (
        pool_of(manifest, StartWorker, version, size=1) as pool,
        bar(f"{manifest.method} start network", total * rows, "img-step", begun * rows) as progress,
    ):
        for made in pool.run(_segments(version, begun, total), lambda segment: purse.covers(pool)):
            made.count(purse.cost)
            progress.update(made.result * rows)
    purse.close(pool)
    if pool.quarantine:
        raise DfkdError(f"{pool.quarantine[0].reason}; mend it and run again")
    _checkpoints(version).clear()


def _segments(version: Version, begun: int, total: int) -> Iterator[Segment | None]:
    """One after the other; None while the one before is at work, perhaps on a node that leaves."""
    for first in range(begun, total, SEGMENT):
        while first > begun and _checkpoints(version).newest() < first:
            yield None
        yield Segment(first, min(first + SEGMENT, total))


def _checkpoints(version: Version) -> Checkpoints:
    return Checkpoints(version.storage.child("start"))
