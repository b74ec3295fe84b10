"""What one run may spend on synthesis before it stops in a state that the same command resumes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Caps on one call of `dfkd.cluster.synthesis.build`; None is no cap.

    What is begun is finished and kept: images never pass their cap, worker-seconds do so by the
    tasks that were in flight when it was reached.
    """

    images: int | None = None
    """Made by this call; those of earlier runs are not counted."""
    worker_seconds: float | None = None
    """Summed over workers, failed tries included."""

    @property
    def caps(self) -> str:
        """In words."""
        caps = {"images": self.images, "worker-seconds": self.worker_seconds}
        return " and ".join(f"{cap:g} {what}" for what, cap in caps.items() if cap is not None)

    def allows(self, images: int, worker_seconds: float) -> bool:
        """Whether `images` in all may be made, and more be done after `worker_seconds`."""
        return (self.images is None or images <= self.images) and (
            self.worker_seconds is None or worker_seconds < self.worker_seconds
        )
