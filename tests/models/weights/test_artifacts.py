"""Published files: their facts, the names that manifests have for them, and what is not cached."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import open_clip
import pytest
import torchvision
from open_clip.pretrained import get_pretrained_cfg

from dfkd.errors import Exit, WeightsError
from dfkd.models.weights.artifacts import PUBLISHED_VQGANS, Artifact, at_address, cached, hub_id


def every() -> list[Artifact]:
    """The files of torchvision and of the VQGANs."""
    names = [name for name in torchvision.models.list_models() if name.startswith("resnet")]
    sets = [torchvision.models.get_model_weights(name) for name in names]
    resnets = [at_address(each.url, "") for weights in sets for each in weights]
    vqgans = [artifact for files in PUBLISHED_VQGANS.values() for artifact in files.values()]
    return [*resnets, *vqgans]


def test_artifacts_have_valid_names_hashes_and_addresses() -> None:
    artifacts = every()
    assert len({artifact.address for artifact in artifacts}) >= 10
    for artifact in artifacts:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", artifact.file)
        assert re.fullmatch(r"[0-9a-f]{8}|[0-9a-f]{64}", artifact.sha256), artifact
        assert urlsplit(artifact.address).scheme == "https"
    # No two of them share a name in the cache.
    assert len({a.file for a in artifacts}) == len({(a.file, a.address) for a in artifacts})


@pytest.mark.parametrize(
    ("address", "digest"),
    [
        ("https://a.org/models/resnet18-f37072fd.pth", "f37072fd"),
        ("https://a.org/resnet18-f37072fd.pth?x=y", "f37072fd"),
    ],
)
def test_an_address_holds_the_hash(address: str, digest: str) -> None:
    assert at_address(address, "MIT").sha256 == digest


def test_a_hub_has_every_tag_of_open_clip() -> None:
    tag = get_pretrained_cfg("ViT-B-32", "laion2b_s34b_b79k")
    assert hub_id(tag) == "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    assert hub_id({}) == ""
    assert all(hub_id(get_pretrained_cfg(*each)) for each in open_clip.list_pretrained())


def test_a_file_missing_from_the_cache_is_one_line_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"^teacher\.weights: .*dfkd fetch") as caught:
        cached("teacher.weights", "openai", "w.pt", str(tmp_path))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == Exit.USAGE
    (tmp_path / "w.pt").write_bytes(b"x")
    assert cached("teacher.weights", "openai", "w.pt", str(tmp_path)) == tmp_path / "w.pt"
