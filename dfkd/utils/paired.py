"""Paired differences: how much better the runs of a row are than those of another, run by run.

What two runs of one seed share (the latents' noise, the student's initial weights and batches)
cancels in their difference, so that it tells more than two means with their deviations do.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from dfkd.errors import ManifestError


@dataclass(frozen=True)
class Difference:
    """A mean difference of accuracies (0-1) with its 95 % interval."""

    mean: float
    low: float | None
    """None of a single pair, which has no interval."""
    high: float | None


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """The mean of ours minus theirs over the seeds that both have; None where there are none.

    The interval is that of Student's t: mean ± t(0.975, n - 1) s / sqrt(n), of n differences with
    standard deviation s (n - 1).

    Args:
        ours: figures by seed.
        theirs: those of the reference.

    Raises:
        ManifestError: scipy is missing.
    """
    found = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not found:
        return None
    mean = statistics.fmean(found)
    if len(found) == 1:
        return Difference(mean, None, None)
    half = _quantile(len(found) - 1) * statistics.stdev(found) / len(found) ** 0.5
    return Difference(mean, mean - half, mean + half)


def require_scipy() -> None:
    """Refuse (`ManifestError`) a machine without scipy, which only these intervals need."""
    _quantile(1)


def _quantile(freedom: int) -> float:
    """Of 0.975 of Student's t with that many degrees of freedom."""
    try:
        from scipy.special import stdtrit
    except ImportError:
        raise ManifestError(
            "environment", "needs the extra studies", "scipy", "pip install -e '.[studies]'"
        ) from None
    return float(stdtrit(freedom, 0.975))
