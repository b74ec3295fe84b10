"""How large models are, and that what was measured once is found."""

import json
from pathlib import Path

import pytest
import torch

from dfkd.config.manifest import Manifest
from dfkd.errors import CorruptionError
from dfkd.lab import footprint
from dfkd.lab.footprint import (
    TimedNetwork,
    cached_or_measured,
    measure_and_write,
    megabytes,
    read,
)
from dfkd.storage.local import open_storage
from tests.helpers.tiny_models import VIT, model_config, random_model, write_teacher
from tests.helpers.tiny_version import write_manifest


def network(name: str, calls: list[str]) -> TimedNetwork:
    return TimedNetwork(name, 10, 4, lambda pixels: calls.append(f"{name} {tuple(pixels.shape)}"))


def test_only_the_network_that_answers_an_image_is_counted(tmp_path: Path) -> None:
    teacher = model_config(VIT)
    given = write_teacher(tmp_path / "teacher", teacher)
    path = write_manifest(
        tmp_path,
        teacher={"model": given.model, "weights": given.weights},
        distillation={"student": "resnet18"},
    )
    manifest = Manifest.read(path)
    visual = random_model(teacher).get_submodule("visual")
    tower = footprint.tower(manifest.teacher, manifest.cache)
    assert tower.parameters == sum(p.numel() for p in visual.parameters())
    student = footprint.student(manifest)
    assert student.parameters == 11_176_512 + 3 * (512 + 1)  # ResNet-18 and its head
    assert student.answer(torch.rand(1, 3, 32, 32)).shape == (1, 3)  # type: ignore[attr-defined]
    assert megabytes(student.parameters) == pytest.approx(44.712, abs=1e-3)
    embedding = footprint.student(Manifest.read(path, ("distillation.target=embedding",)))
    assert embedding.parameters == 11_176_512 + 16 * (512 + 1)  # the teacher's 16 dimensions
    assert embedding.answer(torch.rand(1, 3, 32, 32)).shape == (1, 3)  # type: ignore[attr-defined]


def test_networks_of_one_shape_are_measured_once(tmp_path: Path) -> None:
    calls: list[str] = []
    storage = open_storage(str(tmp_path))
    found = {"teacher": network("x", calls), "text-only": network("x", calls)}
    ms = measure_and_write(storage, {**found, "student": network("y", calls)})
    assert set(calls) == {"x (1, 3, 4, 4)", "y (1, 3, 4, 4)"}
    assert calls.count("x (1, 3, 4, 4)") == calls.count("y (1, 3, 4, 4)")
    assert ms["teacher"] == ms["text-only"] >= 0
    assert read(storage).ms == ms


def test_a_shape_that_this_machine_has_measured_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    storage = open_storage(str(tmp_path))
    first = cached_or_measured(storage, {"mix": network("x", calls), "random": network("x", calls)})
    assert first["mix"] == first["random"]
    calls.clear()
    assert cached_or_measured(storage, {"other": network("x", calls)}) == {"other": first["mix"]}
    assert not calls
    cached_or_measured(storage, {"mix": network("z", calls)})
    assert calls
    calls.clear()
    monkeypatch.setattr(footprint, "processor_name", lambda: "another")
    cached_or_measured(storage, {"mix": network("z", calls)})
    assert calls


def test_a_missing_file_is_empty_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    assert read(storage).ms == {}
    storage.put("latency.json", json.dumps({"schema": 1, "ms": {"x": -1}, "machine": ""}).encode())
    with pytest.raises(CorruptionError, match=r"latency\.json: .*delete it"):
        read(storage)
