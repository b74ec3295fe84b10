"""Measures of the diversity of embeddings: Vendi score, pairwise cosines, principal plane."""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]

NEAR_DUPLICATE_COSINE = 0.99
"""Cosine above which two embeddings of one class count as near duplicates."""


def vendi_score(embeddings: Floats) -> float:
    """The Vendi score (Friedman and Dieng, 2023): the effective number of rows, from 1 to N.

    It is the exponential of the entropy of the eigenvalues of K / N, where K [N, N] holds the
    cosines.

    Args:
        embeddings: [N, E], N >= 1, no zero row; they are normalised here.
    """
    unit = _unit(embeddings)
    # X X' and X' X have the same nonzero eigenvalues, so the smaller one is decomposed.
    gram = unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit
    return effective_number(gram / len(unit))


def effective_number(gram: Floats) -> float:
    """exp(entropy of the eigenvalues) of a Gram matrix [N, N] with trace 1; 1 for a zero matrix."""
    values = np.linalg.eigvalsh(gram)
    # Rounding gives tiny negative eigenvalues, which have no logarithm.
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def near_duplicates(
    embeddings: Floats, labels: npt.NDArray[np.integer[Any]]
) -> npt.NDArray[np.bool_]:
    """A mask [N] of the rows that have a near duplicate.

    A near duplicate is another row of the same class with a cosine above `NEAR_DUPLICATE_COSINE`.

    Args:
        embeddings: [N, E], no zero row; they are normalised here.
        labels: the class [N] of each row.
    """
    unit = _unit(embeddings)
    mask = np.zeros(len(unit), dtype=np.bool_)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        cosines = unit[rows] @ unit[rows].T
        np.fill_diagonal(cosines, -1.0)
        mask[rows] = cosines.max(axis=1, initial=-1.0) > NEAR_DUPLICATE_COSINE
    return mask


def pair_cosines(embeddings: Floats, labels: npt.NDArray[np.integer[Any]]) -> tuple[Floats, Floats]:
    """Cosines of all pairs of rows: of pairs within a class, and of pairs from two classes.

    Args:
        embeddings: [N, E], no zero row; they are normalised here.
        labels: the class [N] of each row.

    Returns:
        Two float64 arrays, one entry per pair.
    """
    unit = _unit(embeddings)
    first, second = np.triu_indices(len(unit), k=1)
    cosines = np.clip((unit @ unit.T)[first, second], -1.0, 1.0)
    same = labels[first] == labels[second]
    return cosines[same], cosines[~same]


def _unit(embeddings: Floats) -> Floats:
    """Rows [N, E] scaled to length 1, float64: cosines near 1 need its precision."""
    wide = embeddings.astype(np.float64)
    unit: Floats = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return unit
