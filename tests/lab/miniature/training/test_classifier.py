"""The classifiers of drawings: they learn, resume, and are files that students start from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dfkd.config.distillation import Distillation
from dfkd.lab.miniature.classifier import (
    ClassifierTrainer,
    LabelledBatches,
    accuracy,
    save,
)
from dfkd.lab.miniature.drawings import Cache, DrawingRow
from dfkd.lab.miniature.recipe import ClassifierRecipe
from dfkd.lab.studies.judge import read_judge
from dfkd.models.student import build
from dfkd.utils.device import CPU
from tests.helpers.training import interrupt_after_saving, same_weights


@pytest.fixture(scope="module")
def batches() -> LabelledBatches:
    """A bar that stands and one that lies, each drawn twice."""
    mono = np.zeros((4, 64, 64), np.uint8)
    mono[:2, 8:56, 26:38] = mono[2:, 26:38, 8:56] = 255
    rows = [DrawingRow("a set", str(i), ("bar",), (), (), (), False, i) for i in range(4)]
    cache = Cache(rows, mono, np.zeros((0, 64, 64, 4), np.uint8))
    return LabelledBatches(cache, [rows[:2], rows[2:]], 0.4, 0)


def test_it_learns_what_tells_the_classes_apart(batches: LabelledBatches, tmp_path: Path) -> None:
    recipe = ClassifierRecipe(steps=30, rising_steps=5, batch_size=16)
    trainer = ClassifierTrainer(recipe, batches, tmp_path, 0)
    trainer.run()
    network = trainer.network.eval()
    assert accuracy(network, *batches.draw(1000, 64)) > 0.8
    path = save(network, tmp_path / "out" / "judge.safetensors", "resnet18", ["up", "flat"])
    student = build(Distillation(student="resnet18", weights=str(path)), 3, 64, 0)
    assert torch.equal(
        student.get_parameter("backbone.conv1.weight"),
        network.get_parameter("backbone.conv1.weight"),
    )
    judge, (images, _) = read_judge(str(path), ("flat",), 64, CPU), batches.draw(1000, 8)
    assert judge.classes == ("up", "flat")
    torch.testing.assert_close(judge.network(images), network(images), rtol=1e-3, atol=1e-3)


def test_equal_networks_are_equal_files(tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 2)
    # The order of safetensors' metadata changes from call to call.
    files = {save(network, tmp_path / "file", "linear", ["ä"]).read_bytes() for _ in range(20)}
    assert len(files) == 1
    assert torch.equal(load_file(tmp_path / "file")["weight"], network.weight)


def test_an_interrupted_training_resumes_to_the_same_weights(
    batches: LabelledBatches, tmp_path: Path
) -> None:
    recipe = ClassifierRecipe(steps=4, batch_size=4, checkpoint_every=2)
    whole, begun, resumed = (
        ClassifierTrainer(recipe, batches, tmp_path / name, 0)
        for name in ("whole", "parts", "parts")
    )
    whole.run()
    interrupt_after_saving(begun)
    assert begun.step == 2
    resumed.run()
    assert same_weights(whole.network, resumed.network)
