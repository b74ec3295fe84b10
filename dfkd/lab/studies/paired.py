"""Paired differences between two rows of results, seed by seed.

Two runs with the same seed share the latents' noise and the student's initial weights and batches.
What they share cancels in the difference. This narrows the interval if both rows rise and fall
together. If they are unrelated, it is a little wider than that of two separate means, because it
has only n - 1 degrees of freedom.
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
    """Lower end of the interval; None for a single pair, which has no interval."""
    high: float | None
    """Upper end of the interval; None for a single pair."""


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """The mean of ours minus theirs over the common seeds; None if there is no common seed.

    The interval is that of Student's t: mean ± t(0.975, n - 1) s / sqrt(n), where s is the standard
    deviation (n - 1) of the n differences.

    Args:
        ours: accuracies by seed.
        theirs: accuracies of the reference by seed.

    Raises:
        ManifestError: scipy is missing.
    """
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    count = len(differences)
    if not count:
        return None
    mean = statistics.fmean(differences)
    # One difference has no standard deviation.
    if count == 1:
        return Difference(mean, None, None)
    half = _quantile(count - 1) * statistics.stdev(differences) / count**0.5
    return Difference(mean, mean - half, mean + half)


def require_scipy() -> None:
    """Raise `ManifestError` if scipy is missing; only these intervals need it."""
    _quantile(1)


def _quantile(freedom: int) -> float:
    """The 0.975 quantile of Student's t with `freedom` degrees of freedom."""
    try:
        from scipy.special import stdtrit
    except ImportError:
        raise ManifestError(
            "environment", "needs the extra studies", "no scipy", "pip install -e '.[studies]'"
        ) from None
    return float(stdtrit(freedom, 0.975))
