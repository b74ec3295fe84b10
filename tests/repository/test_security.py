"""Hostile content of files and objects that runs read: each is refused in one line.

Archives and arrays are tried in test_shards, weights in test_weights, small objects of any content
in test_fuzz, a take-home folder in test_predict, a generator's configuration in test_vqgan.
"""

import dataclasses
import errno
import hashlib
import io
import json
import os
import pickle
import resource
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from PIL import Image

from dfkd.config.distillation import Distillation
from dfkd.config.identity import identity
from dfkd.config.manifest import Manifest
from dfkd.config.plan import tasks
from dfkd.dataset.loader import Stream
from dfkd.dataset.published import PublishedVersion, current
from dfkd.dataset.random_access import Examples
from dfkd.dataset.shards import Sample, sample_key, write_shard
from dfkd.dataset.verification import verify
from dfkd.dataset.versions import Version, begin
from dfkd.distillation.distiller import Distiller, Schedule
from dfkd.errors import (
    CorruptionError,
    DfkdError,
    InfrastructureError,
    ManifestError,
    WeightsError,
    conceal,
    one_line,
)
from dfkd.export.take_home import calibration_images
from dfkd.models.student import CARD, WEIGHTS, build, card, load_student, save_student
from dfkd.models.weights.reading import read_state_dict
from dfkd.pipeline.command_line import parser, run
from dfkd.report.contact_sheet import examples
from dfkd.report.facts import note_origin
from dfkd.report.gallery import data_uri
from dfkd.storage import layout
from dfkd.storage.checkpoints import Checkpoints
from dfkd.storage.cost_records import record_cost
from dfkd.storage.local import open_storage
from dfkd.utils import parquet
from dfkd.utils.images import decode_image
from dfkd.utils.strict_json import canonical
from dfkd.utils.yaml import read_tree
from tests.helpers import partial_version
from tests.helpers.partial_version import IDENTITY, TASKS, fill, home, make_sample
from tests.helpers.pickles import Mark
from tests.helpers.tiny_version import publish, write_manifest

# --- pictures -------------------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png_bomb(side: int) -> bytes:
    """A PNG of a few hundred bytes that claims `side` x `side` pixels, of which it has some."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(100_000), 9)
    parts = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def encoded(kind: str, side: int = 32, mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (side, side)).save(stream, kind)
    return stream.getvalue()


def jpeg_bomb() -> bytes:
    """A JPEG of 8 x 8 that claims 65,500 pixels a side."""
    data = bytearray(encoded("JPEG", 8))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", 65_500, 65_500)
    return bytes(data)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n"
"""Pillow hands this to Ghostscript, a language in which one can write files."""

STRANGE = {
    "png bomb": png_bomb(60_000),
    "jpeg bomb": jpeg_bomb(),
    "postscript": POSTSCRIPT,
    "tiff": encoded("TIFF"),
    "icon": encoded("ICO"),
    "nothing": b"",
    "gif": b"GIF89a",
    "pickle": pickle.dumps([0]),
    "header": encoded("PNG")[:40],
}


@pytest.mark.parametrize("content", STRANGE.values(), ids=STRANGE)
def test_pictures_that_are_bombs_or_programs_are_not_decoded(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        decode_image(content, 32)
    with pytest.raises(CorruptionError, match="image x cannot be read"):
        Sample("x", content, "png", {}, {}).decoded(data_uri)


def test_a_picture_is_judged_by_its_header_before_it_is_decoded() -> None:
    with pytest.raises(ValueError, match="8193 x 8193 pixels, at most 67108864"):
        decode_image(png_bomb(8193), 32)


def hostile_version(folder: Path, extension: str = "png", **parts: Any) -> PublishedVersion:
    """A version that is whole by its hashes; `parts` stand for what its samples have of their own.

    They are `image`, `distances`, `class_index`, and `embedding` (of every other sample).
    """
    manifest = Manifest.read(write_manifest(folder))
    storage = open_storage(manifest.storage.root).child("data/vanilla")
    version = begin(storage, identity(manifest, {}))
    image = parts.get("image", encoded("PNG"))
    distances = parts.get("distances", np.ones(3, np.float32))
    for task in tasks(manifest):
        samples = []
        for index in task.indices:
            like = make_sample(0, index)
            key = sample_key(task.class_index, index)
            own = parts.get("class_index", task.class_index)
            facts = like.metadata | {"class": "red", "class_index": own}
            arrays = like.arrays | {"distances": distances}
            if "embedding" in parts and index % 2:
                arrays["embedding"] = parts["embedding"]
            samples.append(Sample(key, image, extension, facts, arrays))
        write_shard(samples, folder / "shard.tar")
        version.commit(task, folder / "shard.tar")
    return version.publish(tasks(manifest), {})


def first_batch(version: PublishedVersion, cache_bytes: int) -> None:
    next(Stream(version, 32, 6, 0, cache_bytes=cache_bytes).batches(0))


@pytest.mark.parametrize("name", ["png bomb", "jpeg bomb", "postscript", "header", "nothing"])
def test_no_reader_accepts_a_version_with_such_images(tmp_path: Path, name: str) -> None:
    extension = "jpg" if name == "jpeg bomb" else "png"
    version = hostile_version(tmp_path, extension, image=STRANGE[name])
    for cache_bytes in (0, 1 << 20):
        with pytest.raises(CorruptionError, match=rf"sample .*\.{extension}: .*synthesise again"):
            first_batch(version, cache_bytes)
    for read in (lambda: calibration_images(version, 32), lambda: examples(version)):
        with pytest.raises(CorruptionError, match="cannot be read"):
            read()


def test_a_shard_far_longer_than_its_receipt_says_is_not_read_whole(tmp_path: Path) -> None:
    version = partial_version.fill(tmp_path)
    receipt = version.shards[0]
    os.truncate(version.storage.location(receipt.shard), 1 << 40)  # more than any memory holds
    with pytest.raises(CorruptionError, match=f"more than the {receipt.bytes} bytes"):
        list(version.samples(receipt))


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "gif": ({"image": encoded("GIF")}, r"sample .*\.png: "),
    "jpeg as png": ({"image": encoded("JPEG")}, r"sample .*\.png: "),
    "png as jpg": ({"image": encoded("PNG"), "extension": "jpg"}, r"sample .*\.jpg: "),
    "larger": ({"image": encoded("PNG", 64)}, r"sample .*\.png: "),
    "16 bits": ({"image": encoded("PNG", mode="I;16")}, r"sample .*\.png: "),
    **{
        f"{count} labels": (
            {"distances": np.ones(count, np.float32)},
            r"distances\.npy: must be 3 numbers",
        )
        for count in (0, 2, 4)
    },
    **{
        f"other embeddings of {width}": (
            {"embedding": np.ones(width, np.float16)},
            rf"embedding\.npy: must be (4|{width}) numbers, as in",
        )
        for width in (1, 3, 5)
    },
    "no embedding": (
        {"embedding": np.ones(0, np.float16)},
        r"embedding\.npy: must be one number or more",
    ),
    **{
        f"class {own}": ({"class_index": own}, "class_index must be one of 3 classes")
        for own in (-1, 3, 1 << 30)
    },
}


@pytest.mark.parametrize(("parts", "reason"), UNFIT.values(), ids=UNFIT)
def test_samples_that_do_not_fit_their_version_are_not_trained_on(
    tmp_path: Path, parts: dict[str, Any], reason: str
) -> None:
    version = hostile_version(tmp_path, **parts)
    for cache_bytes in (0, 1 << 20):
        with pytest.raises(CorruptionError, match=reason):
            first_batch(version, cache_bytes)


# --- Parquet --------------------------------------------------------------------------------------


def table_bytes(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd")
    return stream.getvalue()


def refused_table(data: bytes, reason: str) -> None:
    with pytest.raises(CorruptionError, match=f"here: no readable Parquet .*{reason}.*; fix"):
        parquet.read(data, ("class_index", "index"), "here", "fix it")


GOOD = pa.table({"class_index": [0, 0], "index": [0, 1], "text": ["a", "b"]})


@pytest.mark.parametrize("place", [0, 5, 40, -1, -6, -30])
def test_damaged_parquet_is_refused(place: int) -> None:
    data = bytearray(table_bytes(GOOD))
    data[place] ^= 0xFF
    with pytest.raises(CorruptionError, match="here: no readable Parquet"):
        parquet.read(bytes(data), ("nothing",), "here", "fix it")


def test_a_disk_that_fails_is_no_damage() -> None:
    """The remedy of damage is to delete the object, which would lose a good one."""

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.ESTALE, "Stale file handle")

    with pytest.raises(OSError, match="Stale file handle"):
        parquet.read(Failing(table_bytes(GOOD)), (), "here", "delete it")


def test_parquet_that_decompresses_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some kilobytes that hold 64 MB; the limit, which is 2 GB, is made smaller for the test."""
    monkeypatch.setattr(parquet, "MAX_BYTES", 1 << 24)
    words = pa.array(["x" * 32_000]).dictionary_encode()
    many = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2000, np.int32)), words.dictionary)
    plain = {"class_index": np.zeros(2000, np.int64), "index": np.zeros(2000, np.int64)}
    data = table_bytes(pa.table({**plain, "text": many.cast(pa.string())}))
    assert len(data) < 100_000
    refused_table(data, f"more than {1 << 24} bytes")
    monkeypatch.setattr(parquet, "MAX_VALUES", 1000)
    refused_table(data, "more than 1000 values")
    monkeypatch.undo()
    monkeypatch.setattr(parquet, "MAX_BYTES", 1 << 24)
    # One text that stands once in the file and in each row is refused before it is repeated.
    long = pa.DictionaryArray.from_arrays(pa.array(np.zeros(500, np.int32)), ["x" * (1 << 20)])
    data = table_bytes(pa.table({"class_index": [0] * 500, "index": [0] * 500, "text": long}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused_table(data, f"more than {1 << 24} bytes")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # kilobytes


@pytest.mark.parametrize(
    "table",
    [
        GOOD.select(["index"]),
        GOOD.set_column(0, "class_index", pa.array(["0", "0"])),
        GOOD.set_column(0, "class_index", pa.array([[0], [0]])),
        GOOD.set_column(1, "index", pa.array([None, None], pa.int64())),
        GOOD.set_column(1, "index", pa.array([{"a": 1}, {"a": 1}])),
        GOOD.set_column(1, "index", pa.array([0.5, 1.5])),
    ],
)
def test_prompts_of_another_schema_are_refused(tmp_path: Path, table: pa.Table) -> None:
    version = begin(home(tmp_path), IDENTITY)
    version.storage.put("prompts/00000.parquet", table_bytes(table))
    with pytest.raises(CorruptionError, match=r"00000\.parquet: .*; delete it, run again"):
        version.prompts(TASKS[0])


def test_an_unreadable_index_is_refused(tmp_path: Path) -> None:
    """The manifest states the hash of the damaged index."""
    version = fill(tmp_path)
    for content in (b"PAR1", table_bytes(GOOD)):
        version.storage.put(layout.INDEX, content)
        files = version.manifest["files"] | {layout.INDEX: hashlib.sha256(content).hexdigest()}
        forged = PublishedVersion(version.home, version.manifest | {"files": files}, version.shards)
        with pytest.raises(CorruptionError, match="no readable index"):
            Examples(forged)


# --- names ----------------------------------------------------------------------------------------

OUTSIDE = [
    "../../../../outside",
    "/outside",
    "shards/../../outside",
    "a\0b",
    "..",
    "",
    ".partial/x",
    "a//b",
    "a\\b",
    "C:b",
    "x" * 5000,
]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory with a file beside it, which no name leads to."""
    (tmp_path / "outside").write_bytes(b"outside")
    return tmp_path / "root"


@pytest.mark.parametrize("name", [*OUTSIDE, "a/", "a/.hidden", "a b", "a\n", "-rf", "x" * 300])
def test_no_key_leads_outside_the_storage(outside: Path, name: str) -> None:
    storage = open_storage(str(outside))
    for use in (
        storage.get,
        storage.exists,
        storage.delete,
        lambda key: storage.child(f"{key}/"),  # one slash at the end is the folder's own
        lambda key: storage.put(key, b"x"),
        lambda key: storage.put_if_absent(key, b"x"),
        lambda key: storage.get_file(key, outside / "copy"),
    ):
        with pytest.raises(CorruptionError, match="object key"):
            use(name)
    assert (outside.parent / "outside").read_bytes() == b"outside"


def forge(version: PublishedVersion, **changes: Any) -> None:
    """Change a published manifest, and the pointer so that it states the new hash."""
    content = canonical(version.manifest | changes)
    version.storage.put("manifest.json", content)
    facts = json.loads(version.home.get("current/00000001.json"))
    facts["manifest"] = hashlib.sha256(content).hexdigest()
    version.home.put("current/00000001.json", canonical(facts))


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_shard_of_a_manifest_or_receipt_lies_outside(outside: Path, name: str) -> None:
    version = fill(outside, TASKS[:1])
    shard = version.manifest["shards"][0] | {"shard": name}
    forge(version, shards=[shard])
    found = current(home(outside))
    with pytest.raises(CorruptionError, match="object key"):
        list(found.samples(found.shards[0]))
    assert any("object key" in line for line in verify(found))
    with pytest.raises(CorruptionError):
        next(Stream(found, 32, 1, 0).batches(0))
    version.storage.put("receipts/0000-00000.json", canonical(shard))
    version.storage.delete("manifest.json")
    with pytest.raises(CorruptionError, match="object key"):
        Version(version.home, version.fingerprint).publish(TASKS[:1], {})


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_part_of_prompts_lies_outside(outside: Path, name: str) -> None:
    version = fill(outside, TASKS[:1])
    content = canonical({"parts": {"00000": "0" * 64, name: "0" * 64}})
    version.storage.put("prompts.json", content)
    forge(version, prompts=hashlib.sha256(content).hexdigest())
    found = current(home(outside))
    assert any("names no parts" in line for line in verify(found))


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": ["other", "names"]},
        {"classes": 3},
        {"classes": []},
        {"files": {"index.parquet": 3}},
        {"files": None},
        {"fingerprint": "../x"},
        {"identity": {}},
        {"shards": 3},
        {"shards": [{}]},
        {"samples": -1},
        {"label_mean": "1"},
        {"prompts": "../x"},
        {"weights": []},
    ],
)
def test_a_forged_manifest_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    forge(fill(tmp_path, TASKS[:1]), **changes)
    with pytest.raises(CorruptionError, match="is not the manifest that was published"):
        current(home(tmp_path))


def test_shards_of_no_class_or_of_one_task_twice_are_refused(tmp_path: Path) -> None:
    version = fill(tmp_path, TASKS[:1])
    (shard,) = version.manifest["shards"]
    for shards in ([shard, shard], [shard | {"task": "0002-00000"}], [shard | {"task": "x"}]):
        forge(version, shards=shards)
        with pytest.raises(CorruptionError, match="is not the manifest that was published"):
            current(home(tmp_path))


# --- students and checkpoints ---------------------------------------------------------------------

CONFIG = Distillation(student="resnet18", weights="none", optimizer="adamw", warmup_epochs=0)


def put_student(folder: Path, weights: bytes, **changes: Any) -> None:
    """The objects of a student, whole by their hashes."""
    storage = open_storage(str(folder))
    facts = {"sha256": hashlib.sha256(weights).hexdigest(), "bytes": len(weights)}
    storage.put(WEIGHTS, weights)
    storage.put(CARD, canonical(card(CONFIG, ("a", "b"), 32) | facts | changes))


def test_pickled_students_and_checkpoints_are_refused_and_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"step": Mark(mark)}, tmp_path / "zipped")
    for content in ((tmp_path / "zipped").read_bytes(), pickle.dumps(Mark(mark))):
        put_student(tmp_path / "student", content)
        with pytest.raises(CorruptionError, match=r"student\.safetensors: .*distil again"):
            load_student(open_storage(str(tmp_path / "student")))
        storage = open_storage(str(tmp_path / "checkpoints"))
        storage.put("0000000007.safetensors", content)
        with pytest.raises(CorruptionError, match="not a checkpoint"):
            Checkpoints(storage).read(7)
    assert not mark.exists()


def test_weights_of_another_student_are_refused(tmp_path: Path) -> None:
    header = b'{"x":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}'  # a dtype that torch lacks
    for weights in (
        safetensors.torch.save({"head.weight": torch.zeros(2, 3)}),
        safetensors.torch.save({"x": torch.zeros(1)}),
        struct.pack("<Q", len(header)) + header + bytes(1),
    ):
        put_student(tmp_path, weights)
        with pytest.raises(CorruptionError, match=r"student\.safetensors: .*distil again"):
            load_student(open_storage(str(tmp_path)))


def test_a_card_cannot_ask_for_more_memory_than_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only shapes are built until the weights are known to fit, whatever architecture it names."""
    built: list[bool] = []

    def note(*arguments: Any, **options: Any) -> Any:
        student = build(*arguments, **options)
        built.append(student.mean.is_meta)
        return student

    monkeypatch.setattr("dfkd.models.student.build", note)
    put_student(tmp_path, safetensors.torch.save({"x": torch.zeros(1)}), architecture="resnet152")
    with pytest.raises(CorruptionError, match="has other tensors than its architecture"):
        load_student(open_storage(str(tmp_path)))
    assert built == [True]


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": torch.zeros(1).expand(1 << 10, 1 << 10)},
        dict.fromkeys(map(str, range(100)), torch.zeros(1000)),
    ],
)
def test_a_checkpoint_cannot_claim_more_than_its_file_holds(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    torch.save(tensors, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match=r"must (not )?hold"):
        read_state_dict("teacher.weights", tmp_path / "weights.pt")


def test_a_path_to_a_secret_does_not_print_it(tmp_path: Path) -> None:
    """The base of a study, or generator.config, may name any file of this machine."""
    for text in ("hf_AbCdEfGh", "[default]\naws_secret_access_key = hunter2", "a: b\n\thunter2"):
        (tmp_path / "token").write_text(text)
        with pytest.raises(ManifestError) as caught:
            read_tree(tmp_path / "token")
        assert "hf_AbC" not in str(caught.value)
        harmless(str(caught.value))


def test_an_error_moves_no_cursor() -> None:
    told = str(
        ManifestError("\x1b]0;title\x07\x1b[2K", "must be", "\u202ex", "caf\u00e9 \U0001f680")
    )
    assert "\\x1b]0;title\\x07" in told
    assert told.isprintable()
    assert told.endswith("caf\u00e9 \U0001f680")


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"schema": 2}, "schema"),
        ({"architecture": ["resnet18"]}, "architecture"),
        ({"architecture": ""}, "architecture"),
        *(
            ({"architecture": name}, r"distillation\.student")
            for name in ("os.system", "timm:hf-hub:someone/model", "timm:../x", "resnet")
        ),
        ({"classes": []}, "classes"),
        ({"classes": [1, 2]}, r"classes\.0"),
        ({"image_size": 10**9}, "image_size"),
        ({"image_size": 32.0}, "image_size"),
        ({"embedding_dim": 10**9}, "embedding_dim"),
        ({"sha256": "../x"}, "sha256"),
    ],
)
def test_a_student_card_with_invalid_values_is_refused(
    tmp_path: Path, changes: dict[str, Any], place: str
) -> None:
    put_student(tmp_path, b"", **changes)
    with pytest.raises(CorruptionError, match=rf"student\.json: {place}: .*distil again"):
        load_student(open_storage(str(tmp_path)))


def distiller() -> Distiller:
    config = dataclasses.replace(CONFIG, student="timm:test_resnet")
    return Distiller(build(config, 2, 32, 0), config, Schedule(2, 2, 6), 0)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "change",
    [
        {"step": None},
        {"step": torch.tensor(-1)},
        {"step": torch.tensor(7)},
        {"step": torch.zeros(2)},
        {"student.head.weight": None},
        {"student.head.weight": torch.zeros(3, 5)},
        {"student.more": torch.zeros(1)},
        {"optimizer.9999.exp_avg": torch.zeros(1)},
        {"optimizer.x.exp_avg": torch.zeros(1)},
    ],
    ids=str,
)
def test_a_checkpoint_of_something_else_is_refused(change: dict[str, Any]) -> None:
    state = {**distiller().state(), **change}
    with pytest.raises(CorruptionError, match=r"not of this student .*; delete checkpoints/"):
        distiller().restore({key: value for key, value in state.items() if value is not None})


# --- credentials ----------------------------------------------------------------------------------

KEY, SECRET, TOKEN = (
    "AKIAIOSFODNN7EXAMPLE",
    "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "FwoGZXIvYXdz",
)


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def harmless(text: str) -> None:
    for secret in (KEY, SECRET, TOKEN, "hunter2"):
        assert secret not in text


ROOTS = [
    f"s3://{KEY}:{SECRET}@bucket/x",
    "https://user:hunter2@host/bucket",
    "https://user:p@hunter2@host/bucket",
    "https://user:p/@hunter2@host/bucket",
    "s3://hunter2@bucket",
    "https://host/bucket?X-Amz-Signature=hunter2&x=1",
    f"https://host/bucket?X-Amz-Credential={KEY}%2F2026&X-Amz-Security-Token={TOKEN}",
    f"s3://bucket/{KEY}",
    "az://container/x?sv=2025-01-05&sig=hunter2%3D",
    "AccountName=x;AccountKey=hunter2==;EndpointSuffix=core.windows.net",
    "https://host/file?token=hunter2",
    "https://host/file?access_token=hunter2&x=1",
    "sv=2025-01-05;sig=hunter2",
    "Authorization: Bearer hunter2",
]


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize(
    "field", ["storage.root", "teacher.weights", "evaluation.data", "prompts.styles.0"]
)
def test_a_manifest_with_a_credential_is_refused_without_saying_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], root: str, field: str
) -> None:
    key, value = (field.removesuffix(".0"), [root, "x"]) if field[-1] == "0" else (field, root)
    manifest = write_manifest(tmp_path)
    arguments = [str(manifest), "--print-manifest", "--set", f"{key}={json.dumps(value)}"]
    assert run(parser(""), lambda *_: "", lambda *_: {}, arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {field}: must not hold credentials, got ")
    assert printed.err.count("\n") == 1
    harmless(printed.err)


def test_every_error_class_conceals_credentials() -> None:
    for root in ROOTS:
        harmless(conceal(root))
        for error in (
            DfkdError(f"cannot read {root}"),
            InfrastructureError(f'storage: Could not connect to "{root}"; run again'),
            ManifestError("x", f"must not be {root}", root * 50, f"use {root}"),
            ManifestError("x", "must be", {"a": [root]}, "fix"),
        ):
            harmless(str(error))
            harmless(repr(error))
            harmless(str(pickle.loads(pickle.dumps(error))))


def test_a_secret_at_the_cut_of_a_library_s_error_is_concealed() -> None:
    for place in range(200):
        harmless(one_line(ValueError("x" * place + " https://user:hunter2@host/bucket")))


def test_text_without_credentials_is_not_concealed() -> None:
    for text in (
        "s3://bucket/a@b/c",
        "s3://bucket/pre-fix/b",
        "s3://bucket",
        "runs/@home",
        "/a:b/c@d",
        "https://a.b/c@d",
        "manifests/a.yaml",
        "a:b@c",
        "x=1&y=2",
        "design=1",
    ):
        assert conceal(text) == text


def test_errors_can_be_pickled_without_loss() -> None:
    error = pickle.loads(pickle.dumps(ManifestError("seed", "must be", -1, "change it")))
    assert (str(error), error.field) == ("seed: must be, got -1; change it", "seed")
    assert error.exit_code == 2


def test_a_huge_value_is_not_repeated() -> None:
    assert len(str(ManifestError("seed", "must be", "x" * 10**6, "change it"))) < 400


@contextmanager
def refusing_server(status: int) -> Iterator[str]:
    """An S3 server that says no, and repeats in its answers what it was told, as AWS does."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self.rfile.read(length)
            told = self.headers.get("Authorization", "") + TOKEN + SECRET
            body = (
                "<?xml version='1.0'?><Error><Code>SignatureDoesNotMatch</Code>"
                f"<Message>told {told}</Message><AWSAccessKeyId>{KEY}</AWSAccessKeyId></Error>"
            ).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/xml")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_store_that_repeats_the_credentials_is_not_quoted(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    with refusing_server(status) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:hunter2@{address}")
        with pytest.raises(DfkdError, match="SignatureDoesNotMatch") as caught:
            open_storage("s3://bucket/run")
    harmless(str(caught.value))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.usefixtures("credentials")
def test_a_run_writes_no_credentials_of_its_environment(tmp_path: Path) -> None:
    manifest = Manifest.read(write_manifest(tmp_path))
    publish(manifest)
    root = open_storage(manifest.storage.root)
    with record_cost(root, "distill", "vanilla", 0) as cost:
        cost.images = 1
    student = build(manifest.distillation, 3, 32, 0)
    save_student(root.child("students/x"), student, card(manifest.distillation, ("a", "b"), 32))
    note_origin(root, manifest, "python jobs/pipeline.py")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 15
    for path in files:
        data = path.read_bytes()
        assert not any(secret.encode() in data for secret in (KEY, SECRET, TOKEN)), path
