"""Domains that are chosen, and the pixels of one, in parts that need no student."""

import unicodedata
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dfkd.errors import DfkdError, ManifestError
from dfkd.lab.few_shot.run import (
    Domain,
    cell_key,
    notes,
    read_domain,
    rows,
    select_domains,
)
from dfkd.lab.few_shot.settings import FewShot
from dfkd.lab.few_shot.tuning import InitialWeights, LabelledImages, split_domain
from dfkd.models.student import Student
from dfkd.storage.local import open_storage
from dfkd.utils.progress import bar
from tests.evaluation.test_data import write
from tests.helpers import small_manifest
from tests.helpers.public_layouts import CLEF, write_list


def test_domains_are_named_as_in_the_evaluation_data(tmp_path: Path) -> None:
    packed = unicodedata.normalize("NFD", "élan")  # as macOS packs it
    for domain in ("photo", packed):
        names = [f"{domain}/{name}/{n}.png" for name in ("dog", "cat") for n in range(2)]
        write(tmp_path / "data", *names)
    data = {"data": str(tmp_path / "data")}
    manifest = small_manifest.read(tmp_path, evaluation=data)
    own, unknown = (FewShot(domains=domains) for domains in (("Photo", "Élan"), ("ink",)))
    assert select_domains(manifest, own)[1] == (packed, "photo")
    with pytest.raises(ManifestError, match=r"--domains: must be among those .* got 'ink'"):
        select_domains(manifest, unknown)


def test_an_image_of_two_classes_is_neither_trained_on_nor_tested(tmp_path: Path) -> None:
    """As nine images of ImageCLEF-DA."""
    for domain in "cip":
        pairs = [(number, number // 2) for number in range(24)]
        (tmp_path / domain).mkdir()
        for number, _ in pairs:
            Image.new("RGB", (8, 8), (10 * number, 0, 0)).save(tmp_path / domain / f"{number}.jpg")
        pairs += [(0, 11)] if domain == "p" else []
        write_list(tmp_path / f"{domain}_list.txt", [f"{domain}/{n}.jpg {c}" for n, c in pairs])
    manifest = small_manifest.read(tmp_path, classes=list(CLEF), evaluation={"data": str(tmp_path)})
    data, names = select_domains(manifest, FewShot())
    labels = read_domain(manifest, data, "pascal", 1).images.labels.tolist()
    assert labels == [0, *(number // 2 for number in range(2, 24))]
    note = "domain pascal: 2 entries of images with several classes are left out"
    assert [line for line in notes(FewShot(), data, names) if "entries" in line] == [note]


def grey(folder: Path, **images: int) -> Path:
    """A domain of the same grey image, so many times in each class."""
    for name, count in images.items():
        (folder / "ink" / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), "grey").save(folder / "ink" / name / f"{number}.png")
    return folder


def test_the_same_images_in_other_classes_are_another_domain(tmp_path: Path) -> None:
    digests = set()
    for cats, dogs in ((2, 3), (3, 2)):
        folder = grey(tmp_path / str(cats), cat=cats, dog=dogs)
        manifest = small_manifest.read(tmp_path, evaluation={"data": str(folder)})
        data, names = select_domains(manifest, FewShot())
        digests.add(read_domain(manifest, data, *names, threads=1).sha256)
    assert len(digests) == 2


class Brightness(nn.Module):
    """The logarithm of an image's brightness, which a black image does not have."""

    def forward(self, normal: Tensor) -> Tensor:
        return normal.mean(dim=(1, 2, 3)).clamp_min(0).log()[:, None]


def of_brightness(weights: str = "seed 0") -> InitialWeights:
    return InitialWeights("scratch", weights, lambda: Student(Brightness(), nn.Linear(1, 2)))


def grey_domain(name: str = "ink", sha256: str = "digest") -> Domain:
    """Three white images and a black one, in two classes."""
    pixels = torch.tensor([255, 255, 255, 0], dtype=torch.uint8).view(4, 1, 1, 1)
    images = LabelledImages(pixels.expand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))
    return Domain(name, images, sha256, ())


def test_whatever_changes_the_counts_of_a_training_changes_its_cell(tmp_path: Path) -> None:
    plain = small_manifest.read(tmp_path)
    settings, origin, ink = FewShot(epochs=1), of_brightness(), grey_domain()
    keys = [
        cell_key(plain, settings, ink, origin, "scratch", 1, 0),
        *(
            cell_key(
                small_manifest.read(tmp_path, **changes), settings, ink, origin, "scratch", 1, 0
            )
            for changes in ({"classes": ["dog", "owl"]}, {"distillation": {"student": "resnet50"}})
        ),
        cell_key(plain, FewShot(epochs=2), ink, origin, "scratch", 1, 0),
        cell_key(plain, FewShot(epochs=1, learning_rate=1.0), ink, origin, "scratch", 1, 0),
        cell_key(plain, settings, grey_domain("oil"), origin, "scratch", 1, 0),
        cell_key(plain, settings, grey_domain("ink", "other"), origin, "scratch", 1, 0),
        cell_key(plain, settings, ink, of_brightness("seed 1"), "scratch", 1, 0),
        cell_key(plain, settings, ink, origin, "untouched", 1, 0),
        cell_key(plain, settings, ink, origin, "scratch", 2, 0),
        cell_key(plain, settings, ink, origin, "scratch", 1, 1),
    ]
    assert len({key.removesuffix(".json")[-16:] for key in keys}) == len(keys)


def test_a_single_answer_that_is_no_number_is_no_score(tmp_path: Path) -> None:
    manifest, cells = small_manifest.read(tmp_path), open_storage(str(tmp_path / "cells"))
    config = FewShot(epochs=1, shots=(1,))
    # The black image is not trained on.
    assert split_domain([0, 1, 0, 1], manifest.classes, "ink", 1, 1).test == (0, 3)
    with (
        bar("trainings", 1, "training") as progress,
        pytest.raises(DfkdError, match="scratch on 'ink' with 1 shots and seed 1 diverged"),
    ):
        list(rows(manifest, config, cells, grey_domain(), of_brightness(), 1, progress))
