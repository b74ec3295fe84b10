"""Images of an unconditional generator are spread over its training, and each gets a place."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfkd.lab.baselines.inverter import PartRequest
from dfkd.lab.baselines.snapshots import SnapshotSampler, assign_to_classes


def undecided(images: torch.Tensor) -> torch.Tensor:
    """The probabilities of a teacher to whom two classes are alike."""
    return torch.full((len(images), 2), 0.5)


def test_images_go_where_the_teacher_sees_them_the_surest_first() -> None:
    labels = torch.tensor([0, 1, 0, 1])
    seen = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    # 1 and 2 take the places of class 0; 3 the first of class 1, and 0 is left for the other.
    assert assign_to_classes(seen, labels).tolist() == [1, 3, 2, 0]


@given(st.integers(2, 5), st.integers(1, 20), st.integers(0, 10**6))
def test_every_image_has_one_place(classes: int, images: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=rng)
    seen = torch.rand(images, classes, generator=rng).softmax(1)
    order = assign_to_classes(seen, labels)
    assert sorted(order.tolist()) == list(range(images))
    # No two images would both rather change places.
    own = seen[order]
    for one in range(images):
        for two in range(images):
            here, there = own[one, labels[one]], own[two, labels[two]]
            better = (own[one, labels[two]] > max(here, there)) and labels[one] != labels[two]
            assert not better


@pytest.mark.parametrize(("rounds", "snapshots"), [(10, 3), (2, 20), (7, 7), (1, 1)])
def test_images_come_from_evenly_spread_rounds(rounds: int, snapshots: int) -> None:
    run = PartRequest(torch.tensor([0, 1] * 5), range(10))
    sampler = SnapshotSampler(run, range(7, 7 + rounds), snapshots)
    for number in range(7, 7 + rounds):
        sampler.take(
            number, lambda n=number: torch.full((4, 3, 16, 16), n / 255), torch.tensor(number)
        )
    made = sampler.assigned(undecided)
    assert len(made.pixels) == 10
    assert int(made.steps.max()) == 7 + rounds
    assert torch.equal(made.pixels[:, 0, 0, 0].long() + 1, made.steps)
    assert torch.equal(made.losses.long() + 1, made.steps)
    counts = made.steps.unique(return_counts=True)[1]
    assert len(counts) == min(rounds, snapshots)
    assert int(counts.max() - counts.min()) <= 1


def test_an_image_of_no_numbers_has_diverged() -> None:
    run = PartRequest(torch.tensor([0, 1]), range(2))
    sampler = SnapshotSampler(run, range(1), 1)
    sampler.take(0, lambda: torch.full((2, 3, 64, 64), torch.nan), torch.tensor(torch.nan))
    made = sampler.assigned(undecided)
    assert made.diverged.all()
