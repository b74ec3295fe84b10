"""The warm-up on features: each image through the backbone twice, the head trained as before."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfkd.distillation import Course, Distiller
from dfkd.manifest import Manifest
from dfkd.probe import Probe, Probed, can_probe
from dfkd.streaming import Stream
from dfkd.student import Student, build
from dfkd.training import Distillation
from surrogates import publish, write_manifest

EPOCHS = 30


@pytest.fixture
def config(tmp_path: Path) -> Distillation:
    return manifest(tmp_path).distillation


def manifest(folder: Path) -> Manifest:
    learning = {"student": "resnet18", "warmup_epochs": EPOCHS, "epochs": 1, "labels": "stored"}
    more: dict[str, Any] = {"learning_rate": 0.003, "augmentation": [], "batch_size": 6}
    more |= {"optimizer": "adamw", "schedule": "cosine"}
    return Manifest.read(write_manifest(folder, distillation=learning | more))


@pytest.fixture
def stream(tmp_path: Path) -> Stream:
    return Stream(publish(manifest(tmp_path)), 32, 6, seed=0)


def student(config: Distillation) -> Student:
    return build(config, 3, 32, seed=0)


def passes(module: nn.Module) -> list[int]:
    """Grows by the images of each pass through a module."""
    seen: list[int] = []
    module.register_forward_hook(lambda _, inputs, output: seen.append(len(inputs[0])))
    return seen


def warmed(config: Distillation, stream: Stream, stop: int = 10**6) -> Distiller:
    distiller = Distiller(student(config), config, Course.of(config, stream.steps), 0, probe=True)
    go_on(distiller, stream, config, stop)
    return distiller


def go_on(distiller: Distiller, stream: Stream, config: Distillation, stop: int) -> None:
    probe = Probe(distiller.student, stream, config, 0)
    while distiller.probing and distiller.step < stop:
        for batch in probe.batches(distiller.epoch, distiller.step % stream.steps):
            distiller.advance(batch)
            if distiller.step == stop:
                return


@pytest.mark.parametrize(
    ("settings", "possible"),
    [
        ({"labels": "stored", "augmentation": ()}, True),
        ({"labels": "stored", "augmentation": ("mix",)}, False),
        ({"labels": "restyled", "augmentation": ()}, False),
        ({"labels": "live", "augmentation": ()}, False),
    ],
)
def test_where_nothing_changes_from_epoch_to_epoch(
    settings: dict[str, Any], possible: bool
) -> None:
    try:
        config = Distillation(**settings)
    except Exception:  # what a manifest refuses needs no probe
        assert not possible
        return
    assert can_probe(config, 1000, 515) == possible
    assert not can_probe(config, 3_000_000, 515)


def test_each_image_is_seen_twice_however_many_epochs(config: Distillation, stream: Stream) -> None:
    distiller = Distiller(student(config), config, Course.of(config, stream.steps), 0, probe=True)
    seen = passes(distiller.student.backbone)
    go_on(distiller, stream, config, 10**6)
    assert distiller.step == EPOCHS * stream.steps
    assert sum(seen) == 2 * stream.steps * stream.rows


def test_the_head_learns_and_the_backbones_weights_stay(
    config: Distillation, stream: Stream
) -> None:
    before = {name: weight.clone() for name, weight in student(config).named_parameters()}
    distiller = warmed(config, stream)
    changed = {n for n, w in distiller.student.named_parameters() if not torch.equal(w, before[n])}
    assert changed == {"head.weight", "head.bias"}
    distiller.student.eval()
    right = []
    for batch in stream.batches(0):
        found: Tensor = distiller.student(batch.pixels / 255)
        right.append((found.argmin(1) == batch.distances.argmin(1)).float().mean())
    assert float(torch.stack(right).mean()) > 0.8  # of three colours


def test_batch_norm_has_the_mean_statistics_of_the_images(
    config: Distillation, stream: Stream
) -> None:
    learner = student(config)
    norm = next(module for module in learner.modules() if isinstance(module, _BatchNorm))
    means: list[Tensor] = []
    hook = norm.register_forward_hook(
        lambda _, inputs, output: means.append(inputs[0].mean((0, 2, 3)))
    )
    Probe(learner, stream, config, 0)
    hook.remove()
    expected = torch.stack(means[: stream.steps]).mean(0)
    torch.testing.assert_close(norm.running_mean, expected, rtol=1e-4, atol=1e-5)
    assert norm.momentum == 0.1
    assert learner.training


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own(
    config: Distillation, stream: Stream
) -> None:
    probe = Probe(student(config), stream, config, 0)
    epochs = [torch.cat([batch.features for batch in probe.batches(e)]) for e in (0, 1)]
    assert not torch.equal(*epochs)
    first, second = (set(map(tuple, epoch.tolist())) for epoch in epochs)
    assert first == second
    later = list(probe.batches(1, step=2))
    assert torch.equal(torch.cat([batch.features for batch in later]), epochs[1][2 * stream.rows :])


def test_a_warm_up_is_taken_up_where_it_was_left(config: Distillation, stream: Stream) -> None:
    whole, part = warmed(config, stream), warmed(config, stream, stop=5)
    late = Distiller(student(config), config, Course.of(config, stream.steps), 0, probe=True)
    late.restore(part.state())
    assert late.probing
    go_on(late, stream, config, 10**6)
    one, two = whole.state(), late.state()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_after_the_warm_up_everything_is_trained_on_images(
    config: Distillation, stream: Stream
) -> None:
    distiller = warmed(config, stream)
    assert not distiller.probing
    before = distiller.student.get_parameter("backbone.conv1.weight").clone()
    distiller.advance(next(iter(stream.batches(0))))
    assert not torch.equal(before, distiller.student.get_parameter("backbone.conv1.weight"))


def test_a_batch_of_features_holds_what_belongs_together(
    config: Distillation, stream: Stream
) -> None:
    probe = Probe(student(config), stream, config, 0)
    pairs = {}
    for epoch in range(2):
        for batch in probe.batches(epoch):
            assert isinstance(batch, Probed)
            columns = (batch.features, batch.distances, batch.labels)
            for features, *said in zip(*(column.tolist() for column in columns), strict=True):
                assert pairs.setdefault(tuple(features), said) == said
