"""Metrics of a running run: counts for Prometheus, exported by Ray, and log lines.

Ray exports each count on every node as `ray_NAME_total` and adds labels of node and process to
those given here. If Ray is not running, nothing is counted.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import ray
from ray.util.metrics import Counter

from dfkd.cluster.engine import Quarantined
from dfkd.config.manifest import Manifest
from dfkd.config.plan import Unit
from dfkd.dataset.receipts import Receipt
from dfkd.storage.base import Request
from dfkd.utils import logs

T = TypeVar("T")


@dataclass(frozen=True)
class Count:
    """A counter: its name, its help text, and the labels that each amount needs.

    It only grows, so its rate is the figure of interest.
    """

    name: str
    says: str
    labels: tuple[str, ...] = ()

    def add(self, amount: float, **labels: str) -> None:
        """Add `amount` to this process's count."""
        # Ray refuses to add 0.
        if ray.is_initialized() and amount:
            Counter(self.name, self.says, self.labels).inc(amount, labels)


RUN = ("manifest", "method")

IMAGES = Count(
    "dfkd_images",
    "images of ended tasks: done, failed (diverged at every try), or quarantined with their task",
    (*RUN, "outcome"),
)
IMAGE_STEPS = Count("dfkd_synthesis_image_steps", "optimisation steps, counted for each image", RUN)
TASK_SECONDS = Count("dfkd_synthesis_seconds", "workers' seconds on tasks that ended well", RUN)
UPLOADS = Count("dfkd_uploads", "objects written to storage")
UPLOAD_SECONDS = Count("dfkd_upload_seconds", "spent on writing objects, retries included")
UPLOAD_BYTES = Count("dfkd_upload_bytes", "bytes of the objects written")
RETRIES = Count("dfkd_storage_retries", "requests to storage that were sent again")
SAMPLES = Count("dfkd_distillation_samples", "images that a rank has trained on", RUN)
STEPS = Count("dfkd_distillation_steps", "optimiser steps of a rank", RUN)
STEP_SECONDS = Count("dfkd_distillation_step_seconds", "a rank's seconds in these steps", RUN)
WAIT_SECONDS = Count(
    "dfkd_distillation_wait_seconds", "a rank's seconds between steps, waiting for data", RUN
)

ALL_COUNTS = tuple(value for value in list(vars().values()) if isinstance(value, Count))
"""The counts above; cluster/README.md and the dashboard show each of them."""

REPORT_SECONDS = 5.0
"""Seconds between two reports of a `Pace`. Ray exports every ten seconds."""


class Pace:
    """Measures how a rank's time divides into training steps and waiting for data."""

    def __init__(self, images_per_step: int, **labels: str) -> None:
        self.images_per_step, self.labels = images_per_step, labels
        self.steps, self.worked, self.waited = 0, 0.0, 0.0
        self.reported = time.perf_counter()

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield `batches`; the time until the caller requests the next one counts as its step."""
        requested = time.perf_counter()
        for batch in batches:
            received = time.perf_counter()
            yield batch
            done = time.perf_counter()
            self.steps += 1
            self.worked += done - received
            self.waited += received - requested
            if done - self.reported > REPORT_SECONDS:
                self.report()
            requested = time.perf_counter()

    def report(self) -> None:
        """Add the steps and seconds since the last report to the counts."""
        SAMPLES.add(self.steps * self.images_per_step, **self.labels)
        STEPS.add(self.steps, **self.labels)
        STEP_SECONDS.add(self.worked, **self.labels)
        WAIT_SECONDS.add(self.waited, **self.labels)
        self.steps, self.worked, self.waited = 0, 0.0, 0.0
        self.reported = time.perf_counter()


def count_request(request: Request) -> None:
    """Observer of a storage (`Storage.observed`) that counts uploads and retried requests."""
    if request.attempt > 1:
        RETRIES.add(1)
    # The time of failed attempts counts too: it is what an upload cost.
    if request.operation == "put":
        UPLOAD_SECONDS.add(request.seconds)
        UPLOAD_BYTES.add(request.bytes)
        if not request.error:
            UPLOADS.add(1)


def report_task(
    manifest: Manifest,
    version: str,
    receipt: Receipt,
    *,
    steps: int,
    seconds: float,
    node: str,
    attempt: int,
) -> None:
    """Report a finished task: metrics and a log line.

    Args:
        manifest: of the run, with one method.
        version: id of the version that the task belongs to.
        receipt: the receipt of its shard.
        steps: optimisation steps, summed over its images.
        seconds: time that the task took.
        node: address of the worker's node.
        attempt: 1 for the first attempt.
    """
    labels = {"manifest": manifest.name, "method": manifest.method}
    failed = len(receipt.failed)
    IMAGES.add(receipt.samples, outcome="done", **labels)
    IMAGES.add(failed, outcome="failed", **labels)
    IMAGE_STEPS.add(steps, **labels)
    TASK_SECONDS.add(seconds, **labels)
    logs.log_event(
        "task",
        run=version,
        task=receipt.task,
        attempt=attempt,
        seconds=round(seconds, 3),
        images=receipt.samples,
        failed=failed,
        bytes=receipt.bytes,
        node=node,
    )


def report_quarantined(manifest: Manifest, version: str, item: Quarantined[Unit]) -> None:
    """Report a quarantined unit of tasks, with the arguments of `report_task`."""
    images = item.unit.count
    IMAGES.add(images, outcome="quarantined", manifest=manifest.name, method=manifest.method)
    logs.log_event("quarantined", run=version, task=item.unit.id, images=images, reason=item.reason)
