"""Domains that are chosen, and the pixels of one, in parts that need no student."""

import dataclasses
import unicodedata
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dfkd.errors import DfkdError, ManifestError
from dfkd.lab.few_shot.run import (
    Domain,
    _Experiment,
    _mapped,
    notes,
    read_domain,
    select_domains,
)
from dfkd.lab.few_shot.settings import FewShot
from dfkd.lab.few_shot.tuning import FewShotSplit, InitialWeights, LabelledImages
from dfkd.models.student import Student
from dfkd.storage.local import open_storage
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


def test_pixels_are_zero_and_can_be_written() -> None:
    pixels = _mapped((2, 4, 4, 3))
    assert not pixels.any()
    pixels[1] = 7
    assert pixels.sum() == 7 * 48


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


def experiment(folder: Path, **settings: object) -> _Experiment:
    """Of three white images and a black one, in two classes."""
    pixels = torch.tensor([255, 255, 255, 0], dtype=torch.uint8).view(4, 1, 1, 1)
    images = LabelledImages(pixels.expand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))
    start = InitialWeights("scratch", "seed 0", lambda: Student(Brightness(), nn.Linear(1, 2)))
    manifest = small_manifest.read(folder, **settings)
    cells = open_storage(str(folder / "cells"))
    return _Experiment(
        manifest, FewShot(epochs=1), cells, Domain("ink", images, "digest", ()), start, seed=0
    )


def test_whatever_changes_the_counts_of_a_training_changes_its_cell(tmp_path: Path) -> None:
    plain = experiment(tmp_path)
    experiments = [
        plain,
        experiment(tmp_path, classes=["dog", "owl"]),
        experiment(tmp_path, distillation={"student": "resnet50"}),
        dataclasses.replace(plain, origin=dataclasses.replace(plain.origin, weights="seed 1")),
        dataclasses.replace(plain, domain=dataclasses.replace(plain.domain, name="oil")),
        dataclasses.replace(plain, domain=dataclasses.replace(plain.domain, sha256="other")),
        dataclasses.replace(plain, seed=1),
    ]
    keys = {each._key("scratch", 1, {}) for each in experiments}
    keys |= {plain._key("scratch", 2, {}), plain._key("scratch", 1, {"epochs": 1})}
    assert len({key.removesuffix(".json")[-16:] for key in keys}) == len(experiments) + 2


def test_a_single_answer_that_is_no_number_is_no_score(tmp_path: Path) -> None:
    split = FewShotSplit(train=(0, 1), test=(2, 3), seed=0)
    with pytest.raises(DfkdError, match="scratch on 'ink' with 1 shots and seed 0 diverged"):
        experiment(tmp_path)._correct("scratch", split, 1)
