"""CMI: its contrast, its adversarial term and its memory by hand."""

import math
from unittest.mock import Mock, call

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd.lab.baselines import cmi
from dfkd.lab.baselines.batch_norm import batch_norm_taps
from dfkd.lab.baselines.cmi import (
    CmiInverter,
    FeatureBank,
    ImagePool,
    contrastive_loss,
    disagreement,
    kl_divergence,
    student_loss,
)
from dfkd.lab.baselines.crops import random_shift
from dfkd.lab.baselines.inverter import PartRequest, cosine_factor, stage_taps
from dfkd.lab.baselines.settings import Cmi
from dfkd.models.teacher import Teacher
from tests.helpers.inversion_runs import problem, run_context

SMALL = Cmi(latent=8, width=4, steps=3, batch_size=2, student_steps=2)


def test_the_contrast_tells_each_image_from_all_others() -> None:
    """Two orthogonal unit vectors, at temperature 0.5."""
    views = torch.eye(2)
    own = -math.log(math.exp(2) / (math.exp(2) + 1))
    assert float(contrastive_loss(views, views, 2, 0.5)) == pytest.approx(own)
    swapped = -math.log(1 / (math.exp(2) + 1))
    assert float(contrastive_loss(views, views.flip(0), 2, 0.5)) == pytest.approx(swapped)


def test_batch_and_memory_count_as_much_however_many_they_are() -> None:
    angles = torch.tensor([0.0, 1.0, 2.0, 4.0])
    local = torch.stack([angles.cos(), angles.sin()], dim=1)
    whole = F.normalize(local + 0.3, dim=1)
    logits = (local @ whole.T / 0.2).double().exp()
    losses = [-math.log(float(logits[i, i] / logits[i].sum())) for i in range(4)]
    expected = losses[0] + sum(losses[1:]) / 3
    assert float(contrastive_loss(local, whole, 1, 0.2)) == pytest.approx(expected, rel=1e-5)


def test_views_come_nearer_through_the_strong_crop_alone() -> None:
    local, whole = (torch.randn(3, 4).requires_grad_() for _ in range(2))
    contrastive_loss(local, whole, 3, 0.2).backward()
    assert whole.grad is None


def test_disagreement_counts_where_both_take_the_same_class() -> None:
    student = torch.log(torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1]]))
    teacher = torch.log(torch.tensor([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1]]))
    kl = 0.8 * math.log(0.8 / 0.5) + 0.1 * math.log(0.1 / 0.3) + 0.1 * math.log(0.1 / 0.2)
    assert disagreement(student, teacher).tolist() == pytest.approx([-kl, 0.0], abs=1e-6)


def test_the_student_s_loss_is_a_mean_kl_of_outputs_softened_at_temperature_twenty() -> None:
    student, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    ours, theirs = torch.softmax(student / 20, 1)[0], torch.softmax(teacher / 20, 1)[0]
    kl = sum(float(p * (p / q).log()) for p, q in zip(theirs, ours, strict=True))
    assert kl_divergence(student, teacher, 20.0).tolist() == pytest.approx([400 * kl], rel=1e-4)
    assert kl_divergence(student, student).tolist() == pytest.approx([0.0], abs=1e-6)
    both = student_loss(torch.cat([student, student]), torch.cat([teacher, student]))
    assert float(both) == pytest.approx(400 * kl / 2, rel=1e-4)


def test_the_bank_forgets_the_oldest_and_draws_different_rows() -> None:
    bank, draws = FeatureBank(4), torch.Generator().manual_seed(0)
    assert len(bank.draw(3, draws)) == 0
    bank.add(torch.tensor([[0.0], [1.0], [2.0]]))
    bank.add(torch.tensor([[3.0], [4.0]]))
    drawn = bank.draw(9, draws)
    assert sorted(drawn.flatten().tolist()) == [1.0, 2.0, 3.0, 4.0]
    assert len(bank.draw(2, draws).unique()) == 2
    assert len(bank.draw(0, draws)) == 0


def test_the_pool_has_the_stored_images_of_finished_parts_and_the_fresh_ones_of_this() -> None:
    earlier = Mock(side_effect=[torch.full((3, 1, 1, 3), 0), torch.full((1, 1, 1, 3), 1)])
    pool, draws = ImagePool(), torch.Generator().manual_seed(0)
    pool.add(torch.full((2, 1, 1, 3), 8))  # of a part that is finished when the next one begins
    pool.keep(earlier, 1)
    pool.keep(earlier, 2)
    assert earlier.mock_calls == [call(0), call(1)]
    pool.add(torch.full((4, 1, 1, 3), 2))
    counts = pool.draw(800, draws)[:, 0, 0, 0].bincount().tolist()
    for count, images in zip(counts, (3, 1, 4), strict=True):
        assert abs(count - 100 * images) < 60


def test_the_student_s_rate_is_a_cosine_over_the_run(teacher: Teacher) -> None:
    assert [cosine_factor(done) for done in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    classifier, run = problem(teacher, 0, 1)
    config = Cmi(latent=8, width=4, steps=1, batch_size=2, student_steps=1)
    made = CmiInverter(classifier, run_context(8), config)
    made.make(run)
    assert made.learner.optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    made.context = run_context(8, torch.zeros(2, 64, 64, 3, dtype=torch.uint8))
    made.make(PartRequest(run.labels, (7, 8), part=1, before=2))
    assert made.learner.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * cosine_factor(2 / 8))
    assert made.learner.optimizer.defaults["weight_decay"] == 1e-4


def test_the_bank_leaves_a_gpu_with_the_state(teacher: Teacher) -> None:
    """A tensor without data stands for one on a GPU: the attempt to copy it raises."""
    classifier, _ = problem(teacher, 0, 1)
    made = CmiInverter(classifier, run_context(), SMALL)
    made.bank.add(torch.ones(1, 2, device="meta"))
    with pytest.raises(NotImplementedError, match="copy out of meta"):
        made.state()


def test_the_loss_is_statistics_class_adversary_and_contrast(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each weight alone, with the same random views, adds up to all together."""
    classifier, run = problem(teacher, 0, 1)
    images = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    labels = run.labels.repeat(4)
    names = ("BATCH_NORM_WEIGHT", "CLASS_WEIGHT", "ADVERSARIAL_WEIGHT", "CONTRAST_WEIGHT")
    values = []
    with batch_norm_taps(teacher, "test") as moments, stage_taps(teacher) as features:
        for chosen in [*((name,) for name in names), names]:
            for name in names:
                monkeypatch.setattr(cmi, name, 2.0 if name in chosen else 0.0)
            config = Cmi(latent=8, width=4)
            made = CmiInverter(classifier, run_context(), config)
            made.batch_norm_taps, made.stage_taps = moments, features
            made.learner.student.eval()
            made.rng = torch.Generator().manual_seed(3)
            loss, seen = made._loss(images, labels)
            values.append(loss.item())
    assert sum(values[:4]) == pytest.approx(values[4], rel=1e-4)
    assert values[0] > 1  # twice L_bn
    light = random_shift(images, torch.Generator().manual_seed(3))
    logits = classifier.logits(light)
    assert values[1] == pytest.approx(2 * F.cross_entropy(logits, labels).item(), rel=1e-4)
    apart = disagreement(made.learner.student_logits(light), logits).mean().item()
    assert values[2] == pytest.approx(2 * apart, rel=1e-4)
    assert values[2] < 0 < values[3]
    assert seen.shape == (8, 2 * (32 + 128 + 256 + 512))


def test_each_batch_is_remembered_and_taught_before_the_next(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, run = problem(teacher, 0, 1, 0)
    made = CmiInverter(classifier, run_context(3), SMALL)
    weights = made.learner.student.head.weight.clone()
    seen = []
    teach = made.teach

    def watched(done: float) -> None:
        assert torch.equal(made.learner.student.head.weight, weights)
        seen.append((done, len(made.bank.features), len(made.pool.draw(9, made.rng))))
        teach(done)
        assert not torch.equal(made.learner.student.head.weight, weights)

    monkeypatch.setattr(made, "teach", watched)
    whole = made.make(run)
    assert seen == [(0, 2, 9)]  # after the last batch of the run nothing is to be learned any more
    assert len(made.bank.features) == 3
    assert whole.pixels.shape == (3, 64, 64, 3)


def test_images_are_made_without_a_change_to_the_student(teacher: Teacher) -> None:
    """The only batch of a run is not learned; batch norm learns in training mode."""
    classifier, run = problem(teacher, 0, 1)
    made = CmiInverter(classifier, run_context(2), SMALL)
    before = {name: each.clone() for name, each in made.learner.student.state_dict().items()}
    made.make(run)
    after = made.learner.student.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_lowest_loss_is_kept_and_falls(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, run = problem(teacher, 0, 1, 0, 1)
    monkeypatch.setattr(cmi, "LEARNING_RATE", 0.01)
    config = Cmi(latent=16, width=8, steps=10, batch_size=4)
    inverter = CmiInverter(classifier, run_context(), config)
    told: list[float] = []
    real = inverter._loss

    def loss(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        found = real(images, labels)
        told.append(float(found[0].detach()))
        return found

    monkeypatch.setattr(inverter, "_loss", loss)
    made = inverter.make(run)
    assert len(told) == 10
    assert made.losses.tolist() == pytest.approx([min(told)] * 4)
    assert min(told) < told[0]
