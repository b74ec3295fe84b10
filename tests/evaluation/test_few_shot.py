"""Domains that are chosen, and the pixels of one, in parts that need no student."""

import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from dfkd.errors import ManifestError
from dfkd.evaluation.few_shot import _mapped, notes, read_domain, select_domains
from tests.evaluation.test_data import write
from tests.helpers import small_manifest
from tests.helpers.public_layouts import CLEF, write_list


def test_domains_are_named_as_in_the_evaluation_data(tmp_path: Path) -> None:
    packed = unicodedata.normalize("NFD", "élan")  # as macOS packs it
    for domain in ("photo", packed):
        names = [f"{domain}/{name}/{n}.png" for name in ("dog", "cat") for n in range(2)]
        write(tmp_path / "data", *names)
    data = {"data": str(tmp_path / "data")}
    own, unknown = (
        small_manifest.read(tmp_path, evaluation=data, fewshot={"domains": domains})
        for domains in (["Photo", "Élan"], ["ink"])
    )
    assert select_domains(own)[1] == (packed, "photo")
    with pytest.raises(ManifestError, match=r"fewshot\.domains: must be among those .* got 'ink'"):
        select_domains(unknown)


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
    data, names = select_domains(manifest)
    labels = read_domain(manifest, data, "pascal", 1).images.labels.tolist()
    assert labels == [0, *(number // 2 for number in range(2, 24))]
    note = "domain pascal: 2 entries of images with several classes are left out"
    assert [line for line in notes(manifest, data, names) if "entries" in line] == [note]


@pytest.mark.parametrize("reserves", [True, False])
def test_pixels_are_zero_and_can_be_written(
    monkeypatch: pytest.MonkeyPatch, reserves: bool
) -> None:
    """Also on macOS, which cannot reserve the space of a file."""
    if not reserves:
        monkeypatch.delattr(os, "posix_fallocate")
    pixels = _mapped((2, 4, 4, 3))
    assert not pixels.any()
    pixels[1] = 7
    assert pixels.sum() == 7 * 48
