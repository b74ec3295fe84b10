"""What a synthesis tells while it runs: measures for Prometheus, and lines for the log."""

from dataclasses import dataclass
from typing import Any

from dfkd import logs
from dfkd.cluster import metrics
from dfkd.cluster.pool import Pool
from dfkd.dataset import Receipt, Version
from dfkd.manifest import Manifest


@dataclass
class Teller:
    """Tells of each task of a pool once, when it ends."""

    manifest: Manifest
    version: Version
    pool: Pool[Any]
    _told: int = 0
    """Quarantined tasks that have been told of."""

    @property
    def labels(self) -> dict[str, str]:
        """Of the run's measures."""
        return {"manifest": self.manifest.name, "method": self.manifest.method}

    def done(
        self, receipt: Receipt, steps: int, seconds: float, node: str, attempt: int = 1
    ) -> None:
        """A task is finished: after so many optimisation steps of its images, on that node."""
        failed = len(receipt.failed)
        metrics.IMAGES.add(receipt.samples, outcome="done", **self.labels)
        metrics.IMAGES.add(failed, outcome="failed", **self.labels)
        metrics.IMAGE_STEPS.add(steps, **self.labels)
        metrics.TASK_SECONDS.add(seconds, **self.labels)
        logs.task_done(
            run=self.version.id,
            task=receipt.task,
            attempt=attempt,
            seconds=seconds,
            images=receipt.samples,
            failed=failed,
            bytes=receipt.bytes,
            node=node,
        )

    def quarantined(self) -> None:
        """Look for tasks that were quarantined since the last call."""
        for item in self.pool.quarantine[self._told :]:
            self._told += 1
            metrics.IMAGES.add(item.task.count, outcome="quarantined", **self.labels)
            logs.task_quarantined(
                run=self.version.id,
                task=item.task.id,
                images=item.task.count,
                reason=item.reason,
            )
