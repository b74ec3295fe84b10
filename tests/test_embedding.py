"""The map of a student's features: neighbours stay neighbours, the same rows give the same map."""

import numpy as np

from dfkd.embedding import tsne


def test_two_crowds_that_lie_apart_lie_apart_on_the_map() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    rows[20:] += 50
    found = tsne(rows, perplexity=5.0)
    assert found.shape == (40, 2)
    middles = found[:20].mean(axis=0), found[20:].mean(axis=0)
    widest = max(
        np.linalg.norm(part - part.mean(axis=0), axis=1).max() for part in np.split(found, 2)
    )
    assert np.linalg.norm(middles[0] - middles[1]) > 2 * widest
    np.testing.assert_array_equal(found, tsne(rows, perplexity=5.0))


def test_few_rows_lie_on_their_principal_plane() -> None:
    rows = np.array([[0.0, 0, 0], [4, 0, 0], [0, 0, 3]], np.float32)
    found = tsne(rows, perplexity=30.0)
    apart = np.linalg.norm(found[:, None] - found[None], axis=2)
    np.testing.assert_allclose(apart, [[0, 4, 3], [4, 0, 5], [3, 5, 0]], atol=1e-5)
    assert tsne(rows[:1], perplexity=30.0).shape == (1, 2)
