"""95 % intervals of means, by Student's t."""

import math
import statistics
from collections.abc import Sequence


def half_width(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of a mean: t(0.975, n - 1) s / sqrt(n).

    s is the standard deviation (n - 1) of the n values. One value has no interval: None.
    """
    if len(values) < 2:
        return None
    return t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def t_quantile(degrees: int) -> float:
    """The t with P(|T| <= t) = 0.95 for Student's T with so many degrees of freedom, 1 or more."""
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        if _within(middle, degrees) < 0.95:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(high)


def _within(angle: float, degrees: int) -> float:
    """P(|T| <= sqrt(degrees) tan(angle)), a finite sum (Abramowitz and Stegun, 26.7.3 and 4)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = total = 0.0 if degrees == 1 else sine * (cosine if odd else 1.0)
    # The terms' factors are 2/3, 4/5, ... of odd degrees and 1/2, 3/4, ... of even ones.
    for k in range(2 + odd, degrees - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    return (angle + total) * 2 / math.pi if odd else total
