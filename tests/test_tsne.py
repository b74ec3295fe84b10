"""t-SNE: affinities by hand, neighbours that stay neighbours, the same map each time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfkd import tsne as module
from dfkd.tsne import affinities, squares, tsne


def test_equally_far_rows_have_equal_affinities() -> None:
    """Four corners of a simplex: each is a neighbour of each, p_ij = 1 / (4 * 3)."""
    found = affinities(np.eye(4), 3.0)
    np.testing.assert_allclose(found, (1 - np.eye(4)) / 12, atol=1e-9)


@given(st.integers(0, 10_000), st.floats(2.0, 9.0))
def test_each_row_has_as_many_neighbours_as_asked_for(seed: int, perplexity: float) -> None:
    rows = np.random.default_rng(seed).normal(size=(31, 4))
    found = affinities(rows, perplexity)
    np.testing.assert_allclose(found, found.T)
    assert found.sum() == pytest.approx(1.0)
    assert not found.diagonal().any()
    # p_j|i is not told; of rows on a circle it is p_ij, as all see the same.
    angles = np.linspace(0, 2 * np.pi, 31, endpoint=False)
    circle = affinities(np.stack([np.cos(angles), np.sin(angles)], axis=1), perplexity) * 31
    entropy = -(circle * np.log(np.maximum(circle, 1e-300))).sum(axis=1)
    np.testing.assert_allclose(np.exp(entropy), perplexity, rtol=1e-4)


def test_squares_are_squared_distances() -> None:
    rows = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    np.testing.assert_allclose(squares(rows), [[0, 25, 1], [25, 0, 18], [1, 18, 0]])


def test_the_gradient_is_that_of_the_divergence() -> None:
    """Central differences of KL(P || Q), with Student's t for Q."""
    noise = np.random.default_rng(0)
    P = affinities(noise.normal(size=(8, 3)), 2.0)
    places = noise.normal(size=(8, 2))

    def divergence(at: np.ndarray) -> float:
        near = 1 / (1 + squares(at))
        np.fill_diagonal(near, 0.0)
        Q = near / near.sum()
        seen = P > 0
        return float((P[seen] * np.log(P[seen] / Q[seen])).sum())

    expected = np.zeros_like(places)
    for index in np.ndindex(places.shape):
        step = np.zeros_like(places)
        step[index] = 1e-5
        expected[index] = (divergence(places + step) - divergence(places - step)) / 2e-5
    np.testing.assert_allclose(module._gradient(P, places), expected, atol=1e-6)


def test_clusters_stay_clusters_and_the_map_is_the_same_each_time() -> None:
    noise = np.random.default_rng(1)
    labels = np.arange(60) % 4
    rows = 5 * noise.normal(size=(4, 16))[labels] + noise.normal(size=(60, 16))
    found = tsne(rows, perplexity=10.0)
    apart = squares(found)
    np.fill_diagonal(apart, np.inf)
    assert (labels[apart.argmin(axis=1)] == labels).all()
    np.testing.assert_array_equal(tsne(rows, perplexity=10.0), found)


@pytest.mark.parametrize("rows", [np.zeros((1, 3)), np.eye(3), np.zeros((12, 2)), np.ones((5, 1))])
def test_a_few_or_equal_rows_have_a_map(rows: np.ndarray) -> None:
    found = tsne(rows)
    assert found.shape == (len(rows), 2)
    assert np.isfinite(found).all()
