"""DFAD: its loss by hand, and what a round trains."""

import dataclasses
from unittest.mock import Mock

import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

from dfkd.lab.baselines import dfad
from dfkd.lab.baselines.dfad import DfadInverter, rate_factor
from dfkd.lab.baselines.inverter import Classifier, InnerStudentTrainer, PartRequest
from dfkd.lab.baselines.settings import Dfad
from dfkd.models.teacher import Teacher
from tests.helpers.inversion_runs import problem, run_context

SETTINGS = Dfad(latent=16, width=8, snapshots=3, rounds=6, student_steps=1, batch_size=8)


def test_the_generators_loss_is_minus_the_mean_difference_of_images_and_classes(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, _ = problem(teacher, 0, 1)
    inverter = DfadInverter(classifier, run_context(), SETTINGS)
    seen: list[tuple[Tensor, Tensor]] = []
    student_logits = inverter.learner.student_logits

    def watched(pixels: Tensor) -> Tensor:
        seen.append((pixels.detach(), student_logits(pixels)))
        return seen[-1][1]

    monkeypatch.setattr(inverter.learner, "student_logits", watched)
    loss = float(inverter.train_round())
    ((pixels, student),) = seen
    differences = (student - classifier.logits(pixels)).abs().detach()
    assert differences.shape == (8, 2)
    assert loss == pytest.approx(-float(differences.sum()) / 16, rel=1e-4)


def learner(classifier: Classifier, rate: float = 0.1) -> InnerStudentTrainer:
    return InnerStudentTrainer(classifier, run_context(), F.l1_loss, rate, 5e-4)


def test_the_student_starts_as_a_plain_resnet_of_torchvision(teacher: Teacher) -> None:
    """As in the code bases of these methods; a student of `dfkd.models.student` does not."""
    classifier, _ = problem(teacher, 0, 1)
    plain = torchvision.models.resnet18().state_dict()
    start = learner(classifier).student.backbone.state_dict()
    norms = [key for key, weight in plain.items() if weight.ndim == 1]
    assert norms
    assert all(torch.equal(start[key], plain[key]) for key in norms if not key.startswith("fc."))


def test_the_student_learns_the_logits_of_the_teacher(teacher: Teacher) -> None:
    classifier, _ = problem(teacher, 0, 1)
    pixels = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    teacher_logits = classifier.logits(pixels)
    inner = learner(classifier, rate=1e-3)
    with torch.no_grad():
        before = float(F.l1_loss(inner.student(pixels), teacher_logits))
    for _ in range(20):
        inner.train_step(pixels, teacher_logits)
    with torch.no_grad():
        assert float(F.l1_loss(inner.student(pixels), teacher_logits)) < 0.5 * before


def test_the_student_s_logits_give_gradients_to_pixels_only(teacher: Teacher) -> None:
    classifier, _ = problem(teacher, 0, 1)
    inner = learner(classifier)
    pixels = torch.rand(2, 3, 64, 64).requires_grad_()
    inner.student_logits(pixels).sum().backward()
    assert all(parameter.grad is None for parameter in inner.student.parameters())
    assert all(parameter.requires_grad for parameter in inner.student.parameters())


def test_the_generator_learns_what_a_fixed_student_gets_wrong(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dfad, "STUDENT_RATE", 1e-12)
    classifier, _ = problem(teacher, 0, 1)
    inverter = DfadInverter(classifier, run_context(), SETTINGS)
    losses = [float(inverter.train_round()) for _ in range(10)]
    assert all(loss < 0 for loss in losses)  # minus the discrepancy
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.5


def test_a_round_is_a_step_of_the_generator_after_those_of_the_student(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, _ = problem(teacher, 0, 1)
    config = Dfad(latent=8, width=4, student_steps=3, batch_size=4)
    inverter = DfadInverter(classifier, run_context(), config)
    train_step = Mock(wraps=inverter.learner.train_step)
    monkeypatch.setattr(inverter.learner, "train_step", train_step)
    before = [parameter.clone() for parameter in inverter.generator.parameters()]
    inverter.train_round()
    learned = [pixels for (pixels, _), _ in train_step.call_args_list]
    assert len(learned) == 3
    assert not any(pixels.requires_grad for pixels in learned)
    assert not torch.equal(learned[0], learned[1])
    after = list(inverter.generator.parameters())
    assert any(not torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_images_are_taken_from_all_rounds(teacher: Teacher) -> None:
    classifier, run = problem(teacher, 0, 1, 0, 1, 0, 1)
    longer = dataclasses.replace(SETTINGS, rounds=12)
    inverter = DfadInverter(classifier, run_context(12), longer)
    made = inverter.make(run)
    assert sorted(made.steps.tolist()) == [2, 2, 4, 4, 6, 6]
    second = PartRequest(run.labels, range(6, 12), part=1, before=6)
    assert sorted(inverter.make(second).steps.tolist()) == [8, 8, 10, 10, 12, 12]
    assert made.pixels.shape == (6, 64, 64, 3)
    assert not made.diverged.any()


def test_rates_fall_to_a_tenth_with_each_third_of_the_rounds(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = [rate_factor(number, 15000) for number in (0, 4999, 5000, 9999, 10000, 14999)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    classifier, run = problem(teacher, 0, 1)
    inverter = DfadInverter(classifier, run_context(2), SETTINGS)
    seen: list[float] = []
    train_round = inverter.train_round

    def watched() -> Tensor:
        seen.append(inverter.learner.optimizer.param_groups[0]["lr"])
        return train_round()

    monkeypatch.setattr(inverter, "train_round", watched)
    inverter.make(run)
    assert seen == pytest.approx([0.05, 0.05, 0.005, 0.005, 0.0005, 0.0005])
    assert inverter.optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)
