"""Whatever a manifest, a receipt or another small object holds: a valid value, or our one error."""

import contextlib
import gzip
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from dfkd.config.manifest import Manifest
from dfkd.dataset.published import current
from dfkd.dataset.receipts import Images, Receipt, decode, encode
from dfkd.dataset.verification import verify
from dfkd.errors import CorruptionError, ManifestError
from dfkd.models.generators.vqgan_config import read_model
from tests.helpers.fuzzing import (
    FUZZ,
    STORED,
    damaged,
    mutations,
    other_content,
    replaced,
)
from tests.helpers.partial_version import TASKS, fill, home
from tests.helpers.small_manifest import SMALLEST, vqgan
from tests.helpers.tiny_models import official_yaml


def yaml_bytes(tree: Any) -> bytes:
    return yaml.safe_dump(tree, allow_unicode=True).encode(errors="surrogatepass")


def require_message(error: Exception) -> None:
    assert str(error).strip()
    assert len(str(error)) < 4000


# --- manifests ------------------------------------------------------------------------------------

VALID: dict[str, Any] = {
    **SMALLEST,
    "prompts": {
        "method": ["vanilla", "mix"],
        "styles": ["red", "blue"],
        "contrastive": {"bank": 2},
    },
    "generator": vqgan(steps=3, learning_rate=0.1),
    "synthesis": {"format": "jpg", "bn": {"weight": 2.0}},
    "distillation": {"seeds": [0, 1], "batch_size": 8, "workers": 2},
    "evaluation": {"models": "teacher"},
}


def read_manifest(content: bytes, *overrides: str) -> Manifest | None:
    """The manifest in a file of these bytes, or None where it was refused in our way."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.yaml")
        path.write_bytes(content)
        try:
            manifest = Manifest.read(path, overrides)
        except ManifestError as error:
            require_message(error)
            return None
    printed = yaml.safe_dump(manifest.as_dict(), allow_unicode=True)
    assert yaml.safe_load(printed) == manifest.as_dict()
    return manifest


@FUZZ
@given(st.binary(max_size=200) | damaged(yaml.safe_dump(VALID).encode()))
@example(b"name: !!python/object/apply:os.system [id]\n")
@example(b"name: !!binary aGk=\n")
@example(b"? {a: b}\n: c\n")
@example(b"a: 1e999\n")
@example(b"a: " + b"9" * 5000)
@example(b"a: 0x" + b"f" * 5000)
@example(b"<<: {a: 1}\n")
@example(b"<<: 1\n")
@example(b"a: !!set {b, c}\n")
@example(b"a: 12:30:45\n")
@example(b"a: !!float 1" + b":1" * 200)
@example(b"a: 0o9\n")
@example(b"a: ! 3\n")
@example(b"%YAML 9.9\n---\na: 1\n")
@example(b"--- 1\n--- 2\n")
@example(b"a: 2024-13-45\n")
@example(b"{a: " * 400)
@example(b"- " * 3000)
@example(b'"\\ud800": 1\n')
@example(b"a: 0x" + b"f" * 4000)
def test_any_bytes_are_a_manifest_or_refused(content: bytes) -> None:
    read_manifest(content)


@FUZZ
@given(mutations(VALID))
@example(VALID)
def test_any_change_of_a_manifest_is_valid_or_refused(tree: Any) -> None:
    found = read_manifest(yaml_bytes(tree))
    assert found is not None or tree != VALID


@FUZZ
@given(st.text(max_size=40) | st.builds("{}={}".format, st.text(max_size=20), st.text(max_size=20)))
@example("a.b.c.=1")
@example("classes.0=x")
@example("=1")
@example("name==")
@example("storage.root={a: b}")
@example("seed=" + "[" * 5000)
@example("seed=*a")
@example("a." * 5000 + "b=1")
def test_any_override_is_taken_or_refused(override: str) -> None:
    read_manifest(yaml.safe_dump(VALID).encode(), override)


@FUZZ
@given(mutations(official_yaml()))
def test_any_change_of_a_generators_yaml_is_valid_or_refused(tree: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.yaml")
        path.write_bytes(yaml_bytes(tree))
        try:
            read_model(path)
        except ManifestError as error:
            require_message(error)


# --- receipts -------------------------------------------------------------------------------------

RECEIPT = Receipt(
    "0001-00002", "shards/0001-00002.tar", "ab" * 32, 10240, 1, (4,), "cd" * 32, 2, 0.5, 0.25, 0
)
IMAGES = Images([3], [7], ["an owl"], [0.5], [0.25], [20], [0], ["png"], [0], ["ef" * 32])
TREE = json.loads(gzip.decompress(encode(RECEIPT, IMAGES)))


def read_receipt(data: bytes) -> None:
    try:
        receipt, images = decode(data, "here")
    except CorruptionError as error:
        require_message(error)
    else:
        assert decode(encode(receipt, images), "there") == (receipt, images)
        assert receipt.bytes >= 0
        assert len(receipt.sha256) == len(receipt.fingerprint) == 64
        assert len(images.prompt) == len(images.sha256) == receipt.samples


@FUZZ
@given(st.binary(max_size=200) | damaged(encode(RECEIPT, IMAGES)))
def test_any_bytes_are_a_receipt_or_refused(data: bytes) -> None:
    read_receipt(data)


@FUZZ
@given(damaged(json.dumps(TREE).encode()))
@example(b"[" * 100_000)
@example(b"{" * 100_000)
@example(b'{"a":' * 50_000)
@example(b"9" * 10_000)
@example(json.dumps(TREE).encode().replace(b"10240", b"1" + b"0" * 400))
@example(json.dumps(TREE).encode("utf-16"))
def test_any_content_is_a_receipt_or_refused(content: bytes) -> None:
    read_receipt(gzip.compress(content))


@FUZZ
@given(mutations(TREE))
def test_any_change_of_a_receipt_is_valid_or_refused(tree: Any) -> None:
    read_receipt(gzip.compress(json.dumps(tree).encode()))


@pytest.mark.parametrize(
    "change",
    [
        {"task": "../../x"},
        {"task": "0001-00002\n"},
        {"task": 3},
        {"sha256": "AB" * 32},
        {"sha256": "ab" * 31},
        {"bytes": -1},
        {"bytes": True},
        {"bytes": 3.0},
        {"bytes": "10240"},
        {"bytes": 1 << 63},
        {"samples": -3},
        {"failed": [-1]},
        {"failed": {"0": 1}},
        {"fingerprint": ""},
        {"label_sum": float("inf")},
        {"version": "../" + "0" * 13},
        {"version": "0" * 15},
        {"version": "0" * 16 + "/x"},
        {"version": "G" * 16},
    ],
)
def test_a_receipt_of_wrong_values_is_refused(change: dict[str, Any]) -> None:
    (field,) = change
    tree = TREE | {"receipt": TREE["receipt"] | change}
    with pytest.raises(CorruptionError, match=rf"here: not a receipt \(receipt\.{field}"):
        decode(gzip.compress(json.dumps(tree).encode()), "here")


# --- what a published version is read from --------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    fill(root, TASKS[:2])
    return root


def read_all(root: Path) -> None:
    """What a reader does from `current` down; nothing but a whole version or our error."""
    try:
        version = current(home(root))
    except CorruptionError as error:
        require_message(error)
        return
    for line in verify(version):
        assert line.strip()
    with contextlib.suppress(CorruptionError):
        for receipt in version.receipts():
            for sample in version.samples(receipt):
                assert sample.metadata["class"] in version.classes


@STORED
@given(st.data())
def test_any_pointer_is_read_or_refused(published: Path, data: st.DataObject) -> None:
    path = published / "data/vanilla/current/00000001.json"
    with replaced(path, data.draw(other_content(path.read_bytes()))):
        read_all(published)


@STORED
@given(st.data())
def test_any_stored_receipt_is_read_or_refused(published: Path, data: st.DataObject) -> None:
    (path,) = published.glob("data/vanilla/versions/*/receipts/0000-00000.json.gz")
    content = data.draw(other_content(gzip.decompress(path.read_bytes())))
    with replaced(path, gzip.compress(content)):
        read_all(published)


@STORED
@given(st.data())
def test_any_change_of_a_version_s_manifest_is_refused(
    published: Path, data: st.DataObject
) -> None:
    """The pointer states the hash of the valid manifest, and then that of the damaged one."""
    (path,) = published.glob("data/vanilla/versions/*/version.json")
    content = data.draw(other_content(path.read_bytes()))
    pointer = published / "data/vanilla/current/00000001.json"
    forged = json.loads(pointer.read_text()) | {"sha256": hashlib.sha256(content).hexdigest()}
    with replaced(path, content):
        with pytest.raises(CorruptionError):
            current(home(published))
        with replaced(pointer, json.dumps(forged).encode()):
            read_all(published)
