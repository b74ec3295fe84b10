"""Domains that are chosen, and the pixels of one, in parts that need no student."""

import os
import unicodedata
from pathlib import Path

import pytest

from dfkd.errors import ManifestError
from dfkd.evaluation.few_shot import _mapped, select_domains
from tests.evaluation.test_data import write
from tests.helpers import small_manifest


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
