"""The budget of a synthesis run, which stops when it is used up and can be resumed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Caps on one call of `dfkd.cluster.synthesis.build`; None means no cap.

    Tasks that have begun are finished and kept. Images therefore never exceed their cap, but
    worker-seconds exceed theirs by the tasks that were running when it was reached.
    """

    images: int | None = None
    """Maximal number of images made by this call; earlier runs are not counted."""
    worker_seconds: float | None = None
    """Maximal working time, summed over workers, with failed attempts."""

    @property
    def caps(self) -> str:
        """The caps in words."""
        caps = {"images": self.images, "worker-seconds": self.worker_seconds}
        return " and ".join(f"{cap:g} {what}" for what, cap in caps.items() if cap is not None)

    def allows(self, images: int, worker_seconds: float) -> bool:
        """Whether a task may start that makes `images` the total, after `worker_seconds`."""
        return (self.images is None or images <= self.images) and (
            self.worker_seconds is None or worker_seconds < self.worker_seconds
        )
