import numpy as np
import pytest

from dfkd.prompts.diversity import (
    effective_number,
    near_duplicates,
    pair_cosines,
    vendi_score,
)


@pytest.mark.parametrize(
    ("rows", "score"),
    [
        (np.ones((7, 3), np.float32), 1.0),  # identical vectors count once
        (np.eye(6, dtype=np.float32), 6.0),  # orthogonal ones count each
        (np.repeat(np.eye(3), 5, axis=0), 3.0),
        (np.diag([1.0, 5.0, 0.1]), 3.0),  # their lengths do not count
        # Cosine 0.6: eigenvalues of K / 2 are 0.8 and 0.2.
        (np.array([[1.0, 0.0], [0.6, 0.8]]), 0.8**-0.8 * 0.2**-0.2),
    ],
)
def test_the_vendi_score_by_hand(rows: np.ndarray, score: float) -> None:
    assert vendi_score(rows) == pytest.approx(score)


def test_more_rows_than_dimensions_give_the_same_as_the_kernel() -> None:
    """The effective number of the mean outer product of the rows is the same too."""
    rows = np.random.default_rng(0).normal(size=(40, 5))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(unit @ unit.T / 40)
    values = values[values > 1e-12]
    expected = np.exp(-(values * np.log(values)).sum())
    assert vendi_score(rows) == pytest.approx(expected)
    assert effective_number(unit.T @ unit / 40) == pytest.approx(expected)


def test_pairs_are_told_apart_by_class() -> None:
    rows = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    within, across = pair_cosines(rows, np.array([0, 0, 1, 1]))
    assert sorted(within) == pytest.approx([0.0, 1.0])
    assert sorted(across) == pytest.approx([-1.0, -1.0, 0.0, 0.0])


def test_near_duplicates_are_found_within_a_class_only() -> None:
    rows = np.array([[1.0, 0.0], [2.0, 0.1], [1.0, 0.0], [0.0, 1.0], [0.3, 1.0]])
    found = near_duplicates(rows, np.array([0, 0, 1, 1, 1]))
    assert found.tolist() == [True, True, False, False, False]
    assert near_duplicates(rows[:1], np.array([0])).tolist() == [False]
