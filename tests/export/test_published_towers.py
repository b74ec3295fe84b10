"""Towers of published architectures as files, with random weights: ONNX has their operators.

`PE-Core-T-16-384` distorts pictures to squares, `MobileCLIP2-S0` merges its branches, and SigLIP
pools by attention.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from dfkd.export.folder import Network, check_graphs
from dfkd.export.onnx_graphs import export, quantise
from dfkd.export.predict import INT8, MODEL
from dfkd.models.labeller import Labeller, distances
from dfkd.models.teacher_architecture import build, build_tokenizer, read_architecture
from dfkd.models.tower import TowerClassifier
from dfkd.utils.images import batch
from tests.helpers.hub_families import write_family

CLASSES = ("cat", "dog", "tree")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PE-Core-T-16-384", "MobileCLIP2-S0", "RN50-quickgelu"])
def test_a_published_architecture_is_the_same_as_a_file(name: str, tmp_path: Path) -> None:
    architecture = read_architecture(name)
    model = build(architecture).eval()
    tower = Labeller(model, build_tokenizer(architecture), name, architecture.preprocess)
    check_files(tower, tmp_path)
    assert (tmp_path / INT8).stat().st_size < 0.4 * (tmp_path / MODEL).stat().st_size


@pytest.mark.heavy
@pytest.mark.parametrize("family", ["siglip", "clipa"])
def test_a_small_model_of_a_family_is_the_same_as_a_file(family: str, tmp_path: Path) -> None:
    tower = Labeller.load(write_family(tmp_path / "hub", family), torch.device("cpu"))
    check_files(tower, tmp_path)


def check_files(tower: Labeller, folder: Path) -> None:
    """Export a tower in float32 and int8, and compare both files with it."""
    size, texts = tower.image_size, tower.encode_text(CLASSES)
    noise = np.random.default_rng(0)
    images = [noise.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(6)]
    module = TowerClassifier(tower, texts)
    pixels = torch.from_numpy(batch(images[:2]))
    expected = distances(tower.encode_image(pixels), texts)
    torch.testing.assert_close(module(pixels), expected, atol=1e-5, rtol=0)
    export(module, size, folder / MODEL)
    quantise(folder / MODEL, folder / INT8, images[:2])
    network = Network(module, CLASSES, None, size, tower.resizing, 1.0)
    check = check_graphs(network, folder, images[2:])
    assert check[MODEL]["max_difference"] < 1e-5
    assert check[INT8]["max_difference"] < 0.05
