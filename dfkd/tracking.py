"""What a training run tells while it runs: a progress bar, a line in a log, TensorBoard scalars."""

import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dfkd.distillation import Outcome
from dfkd.progress import QUIET_SECONDS
from dfkd.storage import Storage


class Bar(Protocol):
    """The part of tqdm that is used, and that Ray's bar, which reaches the driver, has too."""

    def update(self, n: int) -> object:
        """Advance by `n` images."""

    def close(self) -> object:
        """Leave the last state on the screen."""


class LineBar:
    """A whole line on stderr every ten seconds, for logs and for processes behind a pipe."""

    def __init__(self, description: str, total: int, done: int) -> None:
        self.description, self.total, self.count, self.initial = description, total, done, done
        self.started = self.printed = time.monotonic()

    def update(self, n: int) -> None:
        """See `Bar.update`."""
        self.count += n
        if time.monotonic() - self.printed > QUIET_SECONDS:
            self.printed = time.monotonic()
            self.close()

    def close(self) -> None:
        """See `Bar.close`."""
        meter = tqdm.format_meter(
            self.count,
            self.total,
            time.monotonic() - self.started,
            ncols=80,
            prefix=self.description,
            ascii=True,
            unit="img",
            initial=self.initial,
        )
        print(meter, file=sys.stderr, flush=True)


class Tracker:
    """Means of loss and agreement between two `log` calls, images/s, and where they are shown."""

    def __init__(self, bar: Bar, storage: Storage, images_per_step: int) -> None:
        """Event files go to `storage` whenever `upload` is called."""
        self.bar, self.storage, self.images_per_step = bar, storage, images_per_step
        self.folder = tempfile.TemporaryDirectory(prefix="dfkd-tensorboard-")
        self.writer = SummaryWriter(self.folder.name)
        self.outcomes: list[Outcome] = []
        self.since = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.close()
        self.writer.close()
        self.folder.cleanup()

    def record(self, outcome: Outcome) -> None:
        """Count one step; its numbers stay on the device until `log`."""
        self.outcomes.append(outcome)
        self.bar.update(self.images_per_step)

    def log(self, step: int, rate: float) -> dict[str, float]:
        """Write the means since the last call under `step`; returns loss and agreement."""
        means = {
            "loss": _mean([outcome.loss for outcome in self.outcomes]),
            "agreement": _mean([outcome.agreement for outcome in self.outcomes]),
        }
        now = time.monotonic()
        speed = len(self.outcomes) * self.images_per_step / max(now - self.since, 1e-9)
        scalars = {**means, "learning_rate": rate, "images_per_second": speed}
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)
        self.outcomes.clear()
        self.since = now
        return means

    def upload(self) -> None:
        """Put the event files where `tensorboard --logdir` finds them."""
        self.writer.flush()
        for file in Path(self.folder.name).iterdir():
            self.storage.put(file.name, file)


def _mean(values: list[Tensor]) -> float:
    return float(torch.stack(values).mean())
