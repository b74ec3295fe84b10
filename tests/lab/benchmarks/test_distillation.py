"""Speed of distillation: labels, numbers of ranks, and what is made for the ranks to read."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dfkd.config.manifest import Manifest
from dfkd.dataset.loader import steps_per_epoch
from dfkd.distillation.labels import target_function
from dfkd.lab.benchmarks import distillation
from dfkd.lab.benchmarks.measure import QUICK
from tests.helpers.tiny_version import write_manifest


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Manifest, int]]:
    """What the ranks of a benchmark were given, and their number; each makes an image a second."""
    given: list[tuple[Manifest, int]] = []

    def run_ranks(manifest: Manifest, version: str, count: int) -> dict[str, float]:
        given.append((manifest, count))
        return {"images_per_s": float(count), "waiting": 0.5}

    monkeypatch.setattr(distillation, "_run_ranks", run_ranks)
    return given


@pytest.mark.parametrize(("per_class", "made"), [(4, 43), (64, 64)])
def test_a_version_has_the_images_of_the_largest_batch(
    tmp_path: Path, runs: list[tuple[Manifest, int]], per_class: int, made: int
) -> None:
    """As PACS needs it: few classes, and batches that are large beside them."""
    manifest = Manifest.read(
        write_manifest(tmp_path, distillation={"batch_size": 32}), ("classes=[cat, dog, car]",)
    )
    found = distillation.ranks(manifest, per_class, (1, 4), 1)
    for shown, _ in runs:
        assert shown.synthesis.images_per_class == made
        assert steps_per_epoch(3 * made, shown.distillation.batch_size) > 0
    assert {shown.distillation.batch_size for shown, _ in runs} == {32, 128}
    assert [figure.ratio for figure in found["figures"]] == [None, 2.0] * 2


def test_views_are_labelled_as_in_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 whatever the student's precision, also where a job would read stored labels."""
    labels: list[Any] = []

    def ours(*given: Any, **options: Any) -> Callable[[], float]:
        labels.append(given[4] if len(given) > 4 else None)
        return lambda: 1.0

    monkeypatch.setattr(distillation, "ours", ours)
    monkeypatch.setattr(distillation, "time_loop", lambda *given: {})
    precision = {"precision": "bfloat16"}
    manifest = Manifest.read(write_manifest(tmp_path, distillation=precision))
    cpu = torch.device("cpu")
    distillation.time_steps(manifest, cpu, 1)
    in_a_job = target_function(manifest.with_values(distillation={"augmentation": ("flip",)}), cpu)
    views = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    live = [label for label in labels if label is not None]
    assert len(live) == 1 + len(distillation.BATCHES)
    for label in live:
        with torch.no_grad():
            assert torch.equal(label(views), in_a_job(views))


@pytest.mark.parametrize(
    ("device", "nodes", "counts"),
    [
        ("cpu", {"a": {"CPU": 2.0}}, [1, 2]),
        ("cpu", {"a": {"CPU": 1.0}}, [1]),
        ("cpu", {"a": {"CPU": 1.0}, "b": {"CPU": 1.0}}, [1, 2]),
        ("H100", {"a": {"CPU": 16.0, "GPU": 1.0}}, [1]),
        ("H100", {"a": {"CPU": 16.0, "GPU": 8.0}}, [1, 2]),
        ("H100", {"a": {"CPU": 16.0}}, []),
    ],
)
def test_only_numbers_of_ranks_that_fit_are_measured(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runs: list[tuple[Manifest, int]],
    device: str,
    nodes: dict[str, dict[str, float]],
    counts: list[int],
) -> None:
    monkeypatch.setattr(distillation, "connected", contextlib.nullcontext)
    monkeypatch.setattr(distillation, "time_steps", lambda *given: {"figures": []})
    monkeypatch.setattr(distillation, "schedulable_nodes", lambda: nodes)
    monkeypatch.setattr(distillation, "device_name", lambda found: device)
    found = distillation.measure(Manifest.read(write_manifest(tmp_path)), QUICK)
    assert [count for _, count in runs] == counts
    assert len(found["figures"]) == len(found["waiting"]) == len(counts)
