"""What is shown of a running run: TensorBoard event files, and what a synthesis will take."""

import contextlib
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.config.plan import image_count
from dfkd.dataset.shards import Sample
from dfkd.errors import DfkdError
from dfkd.storage.base import CLEANUP_ATTEMPTS, Storage, scratch_folder
from dfkd.utils.images import decode_image
from dfkd.utils.progress import Bar, Closing, say

UPLOAD_SECONDS = 60.0
"""Seconds between two uploads of a synthesis, in which many shards a second may finish."""

SAMPLES = 4
"""The number of images shown of each class."""
SIDE = 96
"""Largest width and height of a shown image in pixels; event files are uploaded whole each time."""
CLASSES = 100
"""The largest number of classes shown, for the same reason."""


class Board(Closing):
    """Event files, written to a local folder and copied to storage by `upload`."""

    def __init__(self, storage: Storage) -> None:
        # A worker of synthesis opens none, and would import it in a fifth of a second.
        from torch.utils.tensorboard import SummaryWriter

        self.storage = storage
        self._open = contextlib.ExitStack()
        self.folder = self._open.enter_context(scratch_folder("dfkd-tensorboard-"))
        self.writer = SummaryWriter(str(self.folder))

    def close(self) -> None:
        """Close the files and delete the local folder."""
        self.writer.close()
        self._open.close()

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Add a point at `step` to each named curve."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def images(self, name: str, batch: Tensor, step: int) -> None:
        """Add images [N, 3, H, W], uint8 or float32 in [0, 1], side by side as one picture."""
        self.writer.add_image(name, torch.cat(list(batch.cpu()), dim=2), step)

    def upload(self) -> None:
        """Copy the event files to storage, where `tensorboard --logdir` finds them."""
        self.writer.flush()
        for file in self.folder.iterdir():
            # TensorBoard puts the host's name into it, which may have letters that no key has.
            self.storage.put(re.sub(r"[^A-Za-z0-9._=-]", "_", file.name), file)


class Tracker(Board):
    """Event files of a training: mean loss and agreement between two `log` calls, and images/s."""

    def __init__(self, bar: Bar, storage: Storage, images_per_step: int) -> None:
        super().__init__(storage)
        self.bar, self.images_per_step = bar, images_per_step
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.since = time.monotonic()

    def close(self) -> None:
        """Close the bar where it stands, then do what `Board.close` does."""
        self.bar.close()
        super().close()

    def record(self, loss: Tensor, agreement: Tensor) -> None:
        """Count one step; its scalars stay on the device until `log`."""
        self.pending.append((loss, agreement))
        self.bar.update(self.images_per_step)

    def log(self, step: int, rate: float) -> dict[str, float]:
        """Write the means since the last call under `step`; returns loss and agreement."""
        # The device is waited for once for each of the two.
        losses, agreements = zip(*self.pending, strict=True)
        means = {
            "loss": float(torch.stack(losses).mean()),
            "agreement": float(torch.stack(agreements).mean()),
        }
        now = time.monotonic()
        speed = len(self.pending) * self.images_per_step / max(now - self.since, 1e-9)
        self.scalars({**means, "learning_rate": rate, "images_per_second": speed}, step)
        self.pending.clear()
        self.since = now
        return means


@dataclass(frozen=True)
class ShardSummary:
    """The figures and images of a finished shard that are shown during a run."""

    class_name: str
    samples: int
    failed: int
    loss: float
    """Mean loss of the kept steps; NaN without samples."""
    confidence: float
    """Mean probability of the image's own class; NaN without samples."""
    steps: int
    """Optimisation steps, summed over the samples."""
    images: tuple[bytes, ...]
    """Encoded sample images of the class's first shard; empty for its other shards."""

    @classmethod
    def of(cls, class_name: str, samples: Sequence[Sample], failed: int, show: bool) -> Self:
        """The summary of a shard's samples; with some of its images if `show`."""

        def mean(key: str) -> float:
            """The mean of a metadata value over the samples; NaN without samples."""
            values = [sample.metadata[key] for sample in samples]
            return float(np.mean(values)) if values else math.nan

        return cls(
            class_name,
            len(samples),
            failed,
            mean("loss"),
            mean("confidence"),
            sum(sample.metadata["steps"] for sample in samples),
            tuple(sample.image for sample in samples[:SAMPLES]) if show else (),
        )


class ShardTracker(Board):
    """Event files of a synthesis: figures of each shard over the number of finished images."""

    def __init__(self, storage: Storage, image_size: int, done: int = 0) -> None:
        """`done`: images that earlier runs have finished; `image_size`: pixels a side."""
        super().__init__(storage)
        self.side = min(image_size, SIDE)
        self.initial = self.done = done
        self.failed = self.shown = 0
        self.started = self.uploaded = time.monotonic()

    def close(self) -> None:
        """Upload what was recorded, then do what `Board.close` does.

        No result depends on it, so a store that does not answer neither hides nor delays an error.
        """
        self.storage = self.storage.with_attempts(CLEANUP_ATTEMPTS)
        with contextlib.suppress(DfkdError, OSError):
            if self.done > self.initial or self.failed:
                self.upload()
        super().close()

    def record(self, summary: ShardSummary) -> None:
        """Add a shard's figures, and its images if its class is one of the first `CLASSES`."""
        self.done += summary.samples
        self.failed += summary.failed
        now = time.monotonic()
        speed = (self.done - self.initial) / max(now - self.started, 1e-9)
        values = {"images_per_second": speed, "failed": float(self.failed)}
        if summary.samples:
            values |= {"loss": summary.loss, "confidence": summary.confidence}
        self.scalars(values, self.done)
        if summary.images and self.shown < CLASSES:
            self.shown += 1
            shown = np.stack([decode_image(image, self.side) for image in summary.images])
            batch = torch.from_numpy(shown).permute(0, 3, 1, 2)
            self.images(f"samples/{summary.class_name}", batch, 0)
        # An upload writes the whole files again, so it is not made for every shard.
        if now - self.uploaded > UPLOAD_SECONDS:
            self.uploaded = now
            self.upload()


@dataclass
class Forecast:
    """Tells once what the images of a method take, at the speed of workers that are warm.

    The first unit of a worker does not count, because it also loads models and compiles.
    """

    units: int = 0
    seconds: float = 0.0
    """Of one worker at a time, summed over the units."""
    images: int = 0
    told: bool = False

    def add(self, seconds: float, images: int) -> None:
        """Count a unit that a warm worker has finished."""
        self.units, self.seconds = self.units + 1, self.seconds + seconds
        self.images += images

    def tell(self, manifest: Manifest, left: int, workers: int, gpus: float) -> None:
        """Print the line, if it is the first time and there is a unit for each of the workers.

        Args:
            left: images that are still to be made.
            workers: those at work.
            gpus: GPUs of a worker, or a part of one; 0 if it works on CPUs.
        """
        if self.told or self.units < workers or not self.images:
            return
        self.told = True
        total, hours = image_count(manifest), self.seconds / self.images / 3600
        what = "GPU-hours" if gpus else "worker-hours"
        say(
            f"note: {manifest.method}: all {total} images take about "
            f"{total * hours * (gpus or 1):.3g} {what} at the speed of the first {self.images}; "
            f"the {left} that are left take {left * hours / workers:.3g} hours with "
            f"{workers} workers"
        )
