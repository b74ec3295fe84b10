import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dfkd.config.distillation import Distillation
from dfkd.dataset.batch import Batch
from dfkd.distillation.distiller import Distiller, Schedule, make_optimizer
from dfkd.distillation.objective import DistanceObjective
from dfkd.errors import CorruptionError
from dfkd.models.student import Student, build, rescale_output

pytestmark = pytest.mark.heavy

CONFIG = Distillation(
    student="resnet18",
    weights="backbone.safetensors",
    augmentation=(),
    warmup_epochs=2,
    epochs=3,
    learning_rate=0.05,
    batch_size=12,
    schedule="constant",
    standardise=False,
)
LONG = dataclasses.replace(
    CONFIG,
    student="timm:test_resnet",
    weights="none",
    warmup_epochs=0,
    epochs=20,
    optimizer="adamw",
    learning_rate=3e-3,
    finetune_factor=1.0,
    schedule="cosine",
)
STEPS = 2
SCHEDULE = Schedule.of(CONFIG, STEPS)


def batch(seed: int) -> Batch:
    """Twelve 16 px images of three colours, and the distances a teacher would give."""
    noise = torch.Generator().manual_seed(seed)
    classes = torch.arange(12) % 3
    pixels = torch.randint(0, 120, (12, 3, 16, 16), generator=noise, dtype=torch.uint8)
    pixels[torch.arange(12), classes] += 120
    distances = 1.2 - 0.4 * nn.functional.one_hot(classes, 3).float()
    embeddings = nn.functional.one_hot(classes, 8).half()
    return Batch(pixels, distances, classes, embeddings)


def student(config: Distillation) -> Student:
    """A student with random weights; the file that `CONFIG` names need not exist."""
    return build(dataclasses.replace(config, weights="none", warmup_epochs=0), 3, 16, seed=0)


def distiller(config: Distillation = CONFIG, **options: object) -> Distiller:
    return Distiller(student(config), config, SCHEDULE, seed=0, **options)


def advance(run: Distiller, to: int) -> Distiller:
    while run.step < to:
        run.advance(batch(run.step))
    return run


def equal(left: Student, right: Student) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_schedule_has_two_phases() -> None:
    assert Schedule(STEPS, warmup=4, total=10) == SCHEDULE
    rates = [SCHEDULE.rate(CONFIG, step) for step in range(10)]
    assert rates == [0.05] * 4 + [pytest.approx(0.005)] * 6


def test_each_step_has_the_learning_rate_of_the_schedule() -> None:
    config = dataclasses.replace(CONFIG, student="timm:test_resnet", schedule="cosine")
    run = distiller(config)
    for step in range(SCHEDULE.total):
        optimizer = run.optimizer  # the last step of the warm-up makes another one
        run.advance(batch(step))
        assert optimizer.param_groups[0]["lr"] == SCHEDULE.rate(config, step)


@pytest.mark.parametrize(("weights", "decay"), [("none", 0.002), ("IMAGENET1K_V1", 0.0005)])
def test_sgd_has_momentum_and_weight_decay_and_adamw_neither(weights: str, decay: float) -> None:
    """The weight decay adds a share of a weight to its gradient."""
    moved, kept = (nn.Parameter(torch.ones(1)) for _ in range(2))
    config = dataclasses.replace(CONFIG, weights=weights, warmup_epochs=0)
    sgd, rate = make_optimizer(config, [moved]), config.learning_rate
    for _ in range(2):
        moved.grad = torch.ones(1)
        sgd.step()
    first = 1 + decay
    second = 0.9 * first + 1 + decay * (1 - rate * first)
    assert moved.item() == pytest.approx(1 - rate * (first + second), abs=1e-7)
    kept.grad = torch.zeros(1)
    make_optimizer(LONG, [kept]).step()
    assert kept.item() == 1


@given(st.integers(0, 5), st.integers(1, 5), st.integers(1, 7))
def test_a_cosine_falls_within_each_phase(warmup: int, epochs: int, steps: int) -> None:
    config = Distillation(warmup_epochs=warmup, epochs=epochs)
    schedule = Schedule.of(config, steps)
    rates = [schedule.rate(config, step) for step in range(schedule.total)]
    for phase, peak in ((rates[: schedule.warmup], 0.1), (rates[schedule.warmup :], 0.01)):
        assert sorted(phase, reverse=True) == phase
        assert not phase or phase[0] == pytest.approx(peak)
        assert all(rate > 0 for rate in phase)


def test_warm_up_trains_the_head_alone_on_a_backbone_in_evaluation_mode() -> None:
    run = distiller()
    before = {name: tensor.clone() for name, tensor in run.student.state_dict().items()}
    advance(run, SCHEDULE.warmup)
    changed = {n for n, t in run.student.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {"head.weight", "head.bias"}  # and no statistics of batch norm
    # The second step reaches what is behind the last norm of a block, whose weight is first zero.
    for number in (98, 99):
        run.advance(batch(number))
    after = run.student.state_dict()
    still = [name for name, tensor in after.items() if torch.equal(tensor, before[name])]
    assert still == ["mean", "std"]


def test_warm_up_drops_nothing() -> None:
    config = dataclasses.replace(CONFIG, student="timm:vit_tiny_patch16_224")
    run = Distiller(student(config), config, SCHEDULE, seed=0)
    run.student.backbone.pos_drop.p = 0.5
    for equal_twins in (True, False):
        twins = [run.student.features(batch(0).pixels / 255) for _ in range(2)]
        assert torch.equal(*twins) == equal_twins
        advance(run, SCHEDULE.warmup)


def test_what_a_step_drops_follows_from_its_seed_alone_and_moves_no_other() -> None:
    config = dataclasses.replace(LONG, student="timm:vit_tiny_patch16_224")
    found = []
    for state in (0, 1):
        run = Distiller(student(config), config, Schedule.of(config, STEPS), seed=0)
        run.student.backbone.pos_drop.p = 0.5
        torch.manual_seed(state)
        before = torch.get_rng_state()
        run.advance(batch(0))
        assert torch.equal(torch.get_rng_state(), before)
        found.append(run.student)
    assert equal(*found)


def test_the_student_learns_the_teacher_s_classes() -> None:
    run = Distiller(student(LONG), LONG, Schedule.of(LONG, STEPS), seed=0)
    first = run.advance(batch(0)).loss
    while not run.done:
        outcome = run.advance(batch(run.step))
    assert outcome.loss < 0.4 * first
    trained = run.student.eval()
    unseen = batch(12345)
    predicted = trained(unseen.pixels / 255).argmin(1)
    assert (predicted == torch.arange(12) % 3).float().mean() > 0.7


def test_standardised_training_still_gives_a_student_of_distances() -> None:
    config = dataclasses.replace(LONG, standardise=True)
    objective = DistanceObjective(shift=1.0667, divisor=0.1886)
    run = Distiller(student(config), config, Schedule.of(config, STEPS), 0, objective=objective)
    while not run.done:
        run.advance(batch(run.step))
    unseen = batch(777)
    finished = rescale_output(run.student, objective.shift, objective.divisor).eval()
    outputs = finished(unseen.pixels / 255)
    assert (outputs - unseen.distances).abs().mean() < 0.06


@given(st.lists(st.floats(0, 4), min_size=2, max_size=8))
def test_labels_of_another_spread_keep_the_nearest_class(found: list[float]) -> None:
    plain = torch.tensor([found])
    objective = DistanceObjective.of((0.87, 0.04), mean=1.0, std=0.25)
    moved = (plain - objective.shift) / objective.divisor
    torch.testing.assert_close((moved - 0.87) / 0.04, (plain - 1.0) / 0.25, atol=1e-4, rtol=1e-4)
    assert moved[0, plain.argmin()] == moved.min()


def test_labels_are_standardised_or_left_as_they_are() -> None:
    assert DistanceObjective.of(True, mean=1.0, std=0.25) == DistanceObjective(1.0, 0.25)
    assert DistanceObjective.of(False, mean=1.0, std=0.25) == DistanceObjective(0.0, 1.0)
    assert DistanceObjective.of(True, mean=1.0, std=0.0).divisor > 0


@pytest.mark.parametrize("cut", [1, 3, SCHEDULE.warmup, 5, 9])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_restored_run_ends_with_the_same_bits(cut: int, optimizer: str) -> None:
    config = dataclasses.replace(
        CONFIG,
        student="timm:test_resnet",
        optimizer=optimizer,
        augmentation=("crop", "colour", "noise"),
    )
    options = {"target_function": lambda pixels, *_: pixels.mean(dim=(2, 3))}
    whole = advance(distiller(config, **options), SCHEDULE.total)
    state = advance(distiller(config, **options), cut).state()
    resumed = distiller(config, **options)
    resumed.restore(state)
    assert resumed.step == cut
    assert equal(advance(resumed, SCHEDULE.total).student, whole.student)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"step": None}, "step"),
        ({"step": torch.tensor(-1)}, "step -1 of 10"),
        ({"step": torch.tensor(SCHEDULE.total + 1)}, "step 11 of 10"),
        ({"step": torch.tensor(torch.inf)}, "a step of torch.float32 with 0 axes"),
        ({"step": torch.ones(1, dtype=torch.int64)}, "a step of torch.int64 with 1 axes"),
        ({"step": torch.tensor(1)}, "no moments after step 1"),
        ({"step": torch.tensor(SCHEDULE.total)}, "no moments after step 10"),
        ({"student.head.weight": None}, "in loading state_dict"),
        ({"student.head.weight": torch.zeros(3, 5)}, "in loading state_dict"),
        ({"student.more": torch.zeros(1)}, "in loading state_dict"),
        ({"optimizer.9999.exp_avg": torch.zeros(1)}, ""),
        ({"optimizer.x.exp_avg": torch.zeros(1)}, ""),
    ],
    ids=str,
)
def test_a_state_of_something_else_is_refused(change: dict[str, Any], reason: str) -> None:
    run = distiller(dataclasses.replace(CONFIG, student="timm:test_resnet"))
    state = {key: value for key, value in (run.state() | change).items() if value is not None}
    refusal = rf"not of this student \(.*{reason}.*\); delete checkpoints/"
    with pytest.raises(CorruptionError, match=refusal):
        run.restore(state)


def test_the_first_step_of_a_phase_has_no_moments() -> None:
    run = distiller(dataclasses.replace(CONFIG, student="timm:test_resnet"))
    run.restore(run.state() | {"step": torch.tensor(SCHEDULE.warmup)})
    assert run.step == SCHEDULE.warmup


def test_live_labels_belong_to_the_augmented_view() -> None:
    seen: dict[str, Tensor] = {}
    config = dataclasses.replace(CONFIG, augmentation=("crop", "invert"))

    def label(pixels: Tensor, *_: object) -> Tensor:
        assert not torch.is_grad_enabled()
        seen["teacher"] = pixels.clone()
        return pixels.mean(dim=(2, 3))

    run = distiller(config, target_function=label)
    run.student.register_forward_pre_hook(lambda m, inputs: seen.update(student=inputs[0].clone()))
    outcome = run.advance(batch(0))
    assert torch.equal(seen["teacher"], seen["student"])
    assert not torch.equal(seen["teacher"], batch(0).pixels / 255)
    assert torch.isfinite(outcome.loss)


def test_ranks_steps_and_seeds_augment_differently() -> None:
    config = dataclasses.replace(CONFIG, augmentation=("noise",))
    views = []
    for rank in (0, 1):
        run = distiller(
            config, target_function=lambda p: views.append(p) or p.mean((2, 3)), rank=rank
        )
        run.advance(batch(0))
        run.advance(batch(0))
    assert len(torch.stack(views).flatten(1).unique(dim=0)) == 4
    one, two = (Distiller(student(config), config, SCHEDULE, seed=seed) for seed in (0, 1))
    assert not torch.equal(one.augmented(batch(0)), two.augmented(batch(0)))


def test_agreement_is_the_share_of_equal_nearest_classes() -> None:
    run = distiller()
    with torch.no_grad():
        run.student.head.weight.zero_()
        run.student.head.bias.copy_(torch.tensor([0.1, 0.5, 0.9]))
    assert run.advance(batch(0)).agreement == pytest.approx(4 / 12)


@pytest.mark.parametrize("able", [True, False])
def test_bfloat16_is_taken_where_the_device_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, able: bool
) -> None:
    monkeypatch.setattr("dfkd.utils.device.multiplies_bfloat16", lambda device: able)
    config = dataclasses.replace(CONFIG, precision="bfloat16")
    run = distiller(config)
    dtypes = []
    run.student.backbone.conv1.register_forward_hook(lambda m, i, o: dtypes.append(o.dtype))
    outcome = run.advance(batch(0))
    assert dtypes == [torch.bfloat16 if able else torch.float32]
    assert outcome.loss.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in run.student.parameters())


def test_in_bfloat16_the_head_keeps_what_separates_the_classes_of_a_clip() -> None:
    """Distances of CLIP differ by hundredths near 0.87, where bfloat16 has steps of 0.004."""
    learner, pixels = student(CONFIG).eval(), batch(0).pixels / 255
    with torch.no_grad():
        learner.head.weight.mul_(0.01)
        learner.head.bias.copy_(torch.tensor([0.868, 0.870, 0.872]))
    with torch.autocast("cpu", torch.bfloat16):
        features, distances = learner.features(pixels), learner(pixels)
    assert features.dtype == torch.bfloat16
    exact = nn.functional.linear(features.float(), learner.head.weight, learner.head.bias)
    assert torch.equal(distances, exact)
    rounded = (distances - distances.bfloat16().float()).abs().max()
    assert rounded > 0.0005  # what the same head would lose in bfloat16


def test_a_wrapper_is_made_for_each_phase() -> None:
    wrapped: list[list[bool]] = []

    def distribute(module: nn.Module) -> nn.Module:
        wrapped.append([p.requires_grad for p in module.parameters()])
        return module

    advance(distiller(distribute=distribute), SCHEDULE.total)
    assert len(wrapped) == 2
    assert sum(wrapped[0]) == 2
    assert all(wrapped[1])
