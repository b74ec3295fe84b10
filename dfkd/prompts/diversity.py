"""How different embeddings are from one another: the Vendi score, pairwise cosines, a plane."""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]

NEAR_DUPLICATE_COSINE = 0.99
"""Cosine above which two embeddings of one class count as near duplicates."""


def vendi_score(embeddings: Floats) -> float:
    """The effective number of different rows (Friedman and Dieng, 2023), from 1 to N.

    The exponential of the entropy of the eigenvalues of K / N, where K holds the cosines.

    Args:
        embeddings: [N, E], N >= 1, no row zero; they are normalised here.
    """
    unit = _unit(embeddings)
    # The nonzero eigenvalues of X X' are those of X' X: the smaller of the two is decomposed.
    gram = unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit
    return effective_number(gram / len(unit))


def effective_number(gram: Floats) -> float:
    """exp of the entropy of the eigenvalues of a Gram matrix [N, N] of trace 1; 1 of zeros."""
    values = np.linalg.eigvalsh(gram)
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def near_duplicates(
    embeddings: Floats, labels: npt.NDArray[np.integer[Any]]
) -> npt.NDArray[np.bool_]:
    """Which rows [N] have a near duplicate: another row of their class with a cosine above `NEAR_DUPLICATE_COSINE`.

    Args:
        embeddings: [N, E], no row zero; they are normalised here.
        labels: the class [N] of each row.
    """
    unit = _unit(embeddings)
    found = np.zeros(len(unit), dtype=np.bool_)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        cosines = unit[rows] @ unit[rows].T
        np.fill_diagonal(cosines, -1.0)
        found[rows] = cosines.max(axis=1, initial=-1.0) > NEAR_DUPLICATE_COSINE
    return found


def pair_cosines(embeddings: Floats, labels: npt.NDArray[np.integer[Any]]) -> tuple[Floats, Floats]:
    """Cosines of all pairs of rows: those of one class, and those of two, float64 [pairs].

    Args:
        embeddings: [N, E], no row zero; they are normalised here.
        labels: the class [N] of each row.
    """
    unit = _unit(embeddings)
    first, second = np.triu_indices(len(unit), k=1)
    cosines = np.clip((unit @ unit.T)[first, second], -1.0, 1.0)
    same = labels[first] == labels[second]
    return cosines[same], cosines[~same]


def principal_plane(embeddings: Floats) -> Floats:
    """The first two principal components [N, 2] of rows [N, E]; the same rows, the same plane.

    The sign of an axis is such that its largest loading is positive.
    """
    centred = embeddings.astype(np.float64) - embeddings.mean(axis=0, dtype=np.float64)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2]
    largest = np.abs(axes).argmax(axis=1)[:, None]
    axes = axes * np.where(np.take_along_axis(axes, largest, axis=1) < 0, -1.0, 1.0)
    found = np.zeros((len(centred), 2))
    found[:, : len(axes)] = centred @ axes.T
    return found


def _unit(embeddings: Floats) -> Floats:
    wide = embeddings.astype(np.float64)
    unit: Floats = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return unit
