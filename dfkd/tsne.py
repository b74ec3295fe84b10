"""t-SNE, exactly (van der Maaten and Hinton, 2008): no tree, no sampling, nothing random.

Small enough for an evaluation set of a thousand images. It starts from the first two principal
components (Kobak and Berens, 2019), so that the same rows give the same map.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from dfkd.diversity import plane

Floats = npt.NDArray[np.floating[Any]]

STEPS, EARLY = 750, 250
"""Steps of gradient descent, and how many of them pull neighbours together first."""
EXAGGERATION = 12.0
"""Of the affinities in the early steps; also divides N in the learning rate (Belkina 2019)."""
LEAST_RATE = 50.0
START = 1e-4
"""Standard deviation of the first map's first axis."""
HALVINGS = 64
TINY = 1e-12


def tsne(rows: Floats, perplexity: float = 30.0) -> Floats:
    """A map float64 [N, 2] in which neighbours among rows [N, E] are neighbours.

    Args:
        rows: N >= 1, finite.
        perplexity: effective number of neighbours; at most a third of the other rows is used.
    """
    wide = rows.astype(np.float64)
    N = len(wide)
    start = plane(wide)
    start = START * start / max(float(start[:, 0].std()), TINY)
    if N < 4:
        return start
    return _descend(affinities(wide, min(perplexity, (N - 1) / 3)), start)


def affinities(rows: Floats, perplexity: float) -> Floats:
    """P [N, N], symmetric, of sum 1: p_ij = (p_j|i + p_i|j) / 2N with Gaussian p_j|i.

    Each row's width is such that 2 to the entropy of p_.|i is the perplexity (their section 2).
    """
    squared = squares(rows)
    squared = squared / max(float(squared.mean()), TINY)
    low, high = np.zeros((len(rows), 1)), np.full((len(rows), 1), np.inf)
    beta = np.ones((len(rows), 1))
    for _ in range(HALVINGS):
        p = _conditional(squared, beta)
        entropy = -(p * np.log(np.maximum(p, TINY))).sum(axis=1, keepdims=True)
        flat = entropy > np.log(perplexity)
        low, high = np.where(flat, beta, low), np.where(flat, high, beta)
        beta = np.where(np.isinf(high), 2 * beta, (low + np.minimum(high, 1e300)) / 2)
    together: Floats = (p + p.T) / (2 * len(p))
    return together


def _conditional(squared: Floats, beta: Floats) -> Floats:
    logits = -beta * squared
    np.fill_diagonal(logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: Floats = weights / weights.sum(axis=1, keepdims=True)
    return found


def squares(rows: Floats) -> Floats:
    """Squared Euclidean distances [N, N] between rows."""
    norms = (rows**2).sum(axis=1)
    found: Floats = np.maximum(norms[:, None] + norms[None] - 2 * rows @ rows.T, 0.0)
    np.fill_diagonal(found, 0.0)
    return found


def _descend(P: Floats, start: Floats) -> Floats:  # noqa: N803 - as the paper writes it
    """Minimise KL(P || Q) over the map, with momentum and a gain for each coordinate."""
    rate = max(len(P) / EXAGGERATION, LEAST_RATE)
    places, speed, gains = start.copy(), np.zeros_like(start), np.ones_like(start)
    for step in range(STEPS):
        early = step < EARLY
        gradient = _gradient(P * EXAGGERATION if early else P, places)
        gains = np.where(np.sign(gradient) != np.sign(speed), gains + 0.2, gains * 0.8)
        gains = np.maximum(gains, 0.01)
        speed = (0.5 if early else 0.8) * speed - rate * gains * gradient
        places = places + speed
        places -= places.mean(axis=0)
    return places


def _gradient(P: Floats, places: Floats) -> Floats:  # noqa: N803
    """4 sum_j (p_ij - q_ij) (y_i - y_j) / (1 + ||y_i - y_j||^2), their equation 5."""
    near = 1 / (1 + squares(places))
    np.fill_diagonal(near, 0.0)
    pull = (P - near / near.sum()) * near
    found: Floats = 4 * (pull.sum(axis=1, keepdims=True) * places - pull @ places)
    return found
