"""PRE-DFKD: every term by hand, and a memory that learns to reconstruct images."""

import math
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from dfkd.lab.baselines import pre
from dfkd.lab.baselines.inverter import embedding_taps
from dfkd.lab.baselines.pre import (
    PreInverter,
    agreement,
    class_entropy_loss,
    moment_penalty,
    one_hot_loss,
    prior_kl,
)
from dfkd.lab.baselines.settings import Pre
from dfkd.models.teacher import Teacher
from tests.helpers.inversion_runs import problem, run_context

SETTINGS = Pre(
    latent=16,
    width=8,
    snapshots=2,
    rounds=4,
    student_steps=2,
    memory_steps=1,
    batch_size=16,
)


def logits(*rows: list[float]) -> Tensor:
    return torch.log(torch.tensor(rows))


def test_the_one_hot_loss_is_the_cross_entropy_of_the_most_probable_class() -> None:
    seen = logits([0.75, 0.25], [0.4, 0.6])
    assert float(one_hot_loss(seen)) == pytest.approx(-(math.log(0.75) + math.log(0.6)) / 2)


def test_the_class_entropy_loss_is_lowest_if_classes_are_balanced() -> None:
    expected = 0.8 * math.log10(0.8) + 0.2 * math.log10(0.2)
    for other, loss in (([0.1, 0.9], math.log10(0.5)), ([0.7, 0.3], expected)):
        assert float(class_entropy_loss(logits([0.9, 0.1], other))) == pytest.approx(loss)


def test_agreement_is_one_minus_the_divergence_at_temperature_three() -> None:
    seen = logits([0.5, 0.5], [0.9, 0.1])
    assert float(agreement(seen, seen)) == pytest.approx(1.0)
    student, teacher = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 30.0]])
    ours = [math.e / (math.e + 1), 1 / (math.e + 1)]
    theirs = [0.01, 0.99]  # floored
    exact = [1 / (1 + math.exp(10)), 1 / (1 + math.exp(-10))]
    middle = [(a + b) / 2 for a, b in zip(ours, exact, strict=True)]

    def apart(side: list[float]) -> float:
        return sum(m * math.log(m / p) for m, p in zip(middle, side, strict=True)) / 2

    expected = 1 - 0.5 * (apart(ours) + apart(theirs))
    assert float(agreement(student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_the_moment_penalty_is_of_mean_and_variance() -> None:
    assert float(moment_penalty(torch.tensor([[1.0], [3.0]]))) == pytest.approx((2 - 1) ** 2 + 2**2)
    assert float(moment_penalty(torch.tensor([[-(0.5**0.5)], [0.5**0.5]]))) == pytest.approx(
        0.0, abs=1e-6
    )


def test_the_prior_is_a_kl_to_a_standard_normal() -> None:
    mean, variance = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 2)
    assert float(prior_kl(mean, variance)) == pytest.approx((0.5 + 2.0) / 2)
    wide = torch.full((1, 1), math.log(4.0))
    expected = 0.5 * (4 - 1 - math.log(4))
    assert float(prior_kl(torch.zeros(1, 1), wide)) == pytest.approx(expected)


def test_the_novelty_loss_is_the_sum_of_its_terms(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, _ = problem(teacher, 0, 1)
    names = ("CLASS_WEIGHT", "ENTROPY_WEIGHT", "ACTIVATION_WEIGHT")
    values = []
    with embedding_taps(teacher) as embeddings:
        for chosen in [(), *((name,) for name in names), names]:
            for name in names:
                monkeypatch.setattr(pre, name, 2.0 if name in chosen else 0.0)
            config = Pre(latent=8, width=4, batch_size=16)
            inverter = PreInverter(classifier, run_context(), config)
            inverter.embedding_taps = embeddings
            values.append(float(inverter._novelty_step()))
    alone = values[0]
    assert 0 <= alone <= 1  # the agreement
    assert sum(value - alone for value in values[1:4]) == pytest.approx(values[4] - alone, rel=1e-3)
    assert values[1] > alone  # cross-entropy is positive
    assert values[2] < alone  # entropy and activations are to grow
    assert values[3] < alone


def test_images_move_to_where_the_student_differs_from_a_fixed_teacher(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, _ = problem(teacher, 0, 1)
    inverter = PreInverter(classifier, run_context(), SETTINGS)
    compared = Mock(wraps=agreement)
    monkeypatch.setattr(pre, "agreement", compared)
    with embedding_taps(teacher) as inverter.embedding_taps:
        inverter._novelty_step()
    (student, teacher_logits), _ = compared.call_args
    assert (student.requires_grad, teacher_logits.requires_grad) == (True, False)


def test_the_memory_learns_to_reconstruct_images(teacher: Teacher) -> None:
    """Images of one colour each, told apart by nothing else."""
    classifier, _ = problem(teacher, 0, 1)
    config = Pre(latent=16, width=8, batch_size=16)
    colours = torch.rand(16, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    shown = classifier.normalise(colours.expand(16, 3, 64, 64))
    inverter = PreInverter(classifier, run_context(), config)
    losses = [float(inverter._memory_step(shown, replays=False)) for _ in range(60)]
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])


def test_replays_are_an_eighth_and_leave_the_memory_as_it_is(teacher: Teacher) -> None:
    classifier, _ = problem(teacher, 0, 1)
    inverter = PreInverter(classifier, run_context(), SETTINGS)
    before = [parameter.clone() for parameter in inverter.memory.parameters()]
    with torch.no_grad():  # as `SnapshotSampler.take` does
        seen = inverter.training_images()
    assert inverter._replayed().shape == (2, 3, 64, 64)
    assert seen.shape == (16 + 2, 3, 64, 64)
    after = inverter.memory.parameters()
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_images_are_taken_from_all_rounds(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, run = problem(teacher, 0, 1, 0, 1)
    inverter = PreInverter(classifier, run_context(), SETTINGS)
    rounds = Mock(wraps=inverter.train_round)
    monkeypatch.setattr(inverter, "train_round", rounds)
    made = inverter.make(run)
    # The memory replays to itself from the second round on.
    told = [call.kwargs["remembers"] for call in rounds.call_args_list]
    assert told == [False, True, True, True]
    last = inverter.learner.optimizer.param_groups[0]["lr"]
    assert last == pytest.approx(0.1 * (1 + math.cos(math.pi * 3 / 4)) / 2)
    assert sorted(made.steps.tolist()) == [2, 2, 4, 4]
    assert not made.diverged.any()
