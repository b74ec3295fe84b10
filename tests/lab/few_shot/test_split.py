from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dfkd.lab.few_shot.tuning import draw_order, split_domain

CLASSES = ("cat", "dog", "owl")
Labels = st.lists(st.integers(0, 2), max_size=40)
Shots = st.integers(0, 20)
Seeds = st.integers(0, 5)


@given(Labels, Shots, Seeds)
def test_each_class_gives_its_shots_and_every_other_image_is_tested_on(
    labels: list[int], shots: int, seed: int
) -> None:
    drawn = split_domain(labels, CLASSES, "ink", shots, seed)
    assert sorted(drawn.train + drawn.test) == list(range(len(labels)))
    trained = Counter(labels[place] for place in drawn.train)
    for index, images in Counter(labels).items():  # at least one of each is left
        assert trained[index] == (shots if shots < images else images - 1)


@given(Labels, Shots, Shots, Seeds)
def test_a_larger_draw_contains_a_smaller_one(
    labels: list[int], some: int, more: int, seed: int
) -> None:
    small, large = sorted((some, more))
    few = split_domain(labels, CLASSES, "ink", small, seed)
    many = split_domain(labels, CLASSES, "ink", large, seed)
    assert set(few.train) <= set(many.train)
    assert set(many.test) <= set(few.test)


@given(Labels, Shots, Seeds)
def test_the_draw_of_a_class_does_not_depend_on_other_classes(
    labels: list[int], shots: int, seed: int
) -> None:
    both = split_domain(labels, CLASSES, "ink", shots, seed)
    alone = [place for place, label in enumerate(labels) if label == 1]
    own = split_domain([0] * len(alone), ("dog",), "ink", shots, seed)
    assert [place for place in both.train if labels[place] == 1] == [alone[p] for p in own.train]


def test_the_order_is_a_permutation_that_differs_by_seed_domain_and_class() -> None:
    about = [(0, "ink", "cat"), (1, "ink", "cat"), (0, "oil", "cat"), (0, "ink", "dog")]
    orders = [draw_order(*each, 30) for each in about]
    assert all(sorted(found) == list(range(30)) for found in orders)
    assert len({tuple(found) for found in orders}) == 4
    # Finished trainings would be of other images than their cells say if this changed.
    assert draw_order(0, "ink", "cat", 6) == [5, 4, 3, 1, 2, 0]
