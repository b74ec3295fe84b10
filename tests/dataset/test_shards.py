import contextlib
import dataclasses
import hashlib
import io
import json
import pickle
import random
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dfkd.dataset.receipts import Receipt
from dfkd.dataset.shards import (
    MAX_MEMBER_BYTES,
    Sample,
    parse_shard,
    read_shard,
    write_shard,
)
from dfkd.errors import CorruptionError
from tests.helpers import partial_version
from tests.helpers.pickles import Mark

SAMPLES = [partial_version.make_sample(0, index) for index in range(3)]


def shard_bytes(samples: list[Sample]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "shard.tar")
        assert write_shard(samples, path) == len(samples)
        return path.read_bytes()


def receipt_of(data: bytes, samples: int = 3) -> Receipt:
    digest = hashlib.sha256(data).hexdigest()
    shard = "shards/0000-00000.tar"
    return Receipt("0000-00000", shard, digest, len(data), samples, (), "f" * 64, 0, 0.0, 0.0, 0)


SHARD = shard_bytes(SAMPLES)


def equal(one: Sample, other: Sample) -> bool:
    plain = (one.key, one.image, one.extension, one.metadata)
    same = plain == (other.key, other.image, other.extension, other.metadata)
    return same and all(
        array.dtype == other.arrays[name].dtype and array.tobytes() == other.arrays[name].tobytes()
        for name, array in one.arrays.items()
    )


def finite(bits: int) -> st.SearchStrategy[float]:
    largest = float(np.finfo(f"f{bits // 8}").max)
    return st.floats(-largest, largest, width=bits)


@st.composite
def samples(draw: st.DrawFn) -> list[Sample]:
    keys = draw(st.lists(st.text("aZ09_-", min_size=1), unique=True, max_size=4))
    return [
        Sample(
            key,
            draw(st.binary(max_size=40)),
            draw(st.sampled_from(["png", "jpg"])),
            SAMPLES[0].metadata | {"prompt": draw(st.text()), "loss": draw(finite(64))},
            {
                "distances": np.array(draw(st.lists(finite(32))), np.float32),
                "embedding": np.array(draw(st.lists(finite(16))), np.float16),
            },
        )
        for key in keys
    ]


@settings(max_examples=50, deadline=None)
@given(samples(), st.randoms(use_true_random=False))
def test_bytes_depend_on_the_samples_alone_and_give_them_back(
    made: list[Sample], shuffle: random.Random
) -> None:
    data = shard_bytes(made)
    other = list(made)
    shuffle.shuffle(other)
    assert shard_bytes(other) == data
    read = list(read_shard(data, receipt_of(data, len(made))))
    assert all(map(equal, read, sorted(made, key=lambda sample: sample.key)))


def test_the_bytes_of_the_format_have_not_changed() -> None:
    # A change here changes the sha256 of every shard there is: raise fingerprint.SCHEMA with it.
    sample = dataclasses.replace(SAMPLES[0], image=b"image")
    digest = hashlib.sha256(shard_bytes([sample])).hexdigest()
    assert digest == "5bf830e75b397da8405cd8f4a8ffee3548dc7bf1ffccbc13b7b0ce2ff603be89"


def test_webdataset_reads_a_shard(tmp_path: Path) -> None:
    write_shard(SAMPLES, tmp_path / "a.tar")
    data = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)
    read = list(data.decode())  # type: ignore[no-untyped-call]
    assert [item["__key__"] for item in read] == [sample.key for sample in SAMPLES]
    assert read[1]["json"] == SAMPLES[1].metadata
    assert np.array_equal(read[2]["distances.npy"], SAMPLES[2].arrays["distances"])


def refused(data: bytes, receipt: Receipt, reason: str) -> None:
    reader = read_shard(data, receipt)
    with pytest.raises(CorruptionError, match=reason) as caught:
        next(reader)  # nothing is yielded first
    assert "shards/0000-00000.tar" in str(caught.value)
    assert "restore the file" in str(caught.value)


@given(st.integers(0, len(SHARD) * 8 - 1))
def test_any_flipped_bit_is_found_before_a_sample_is_yielded(bit: int) -> None:
    data = bytearray(SHARD)
    data[bit // 8] ^= 1 << bit % 8
    refused(bytes(data), receipt_of(SHARD), "is not what its receipt says")


@given(st.integers(0, len(SHARD) - 1))
def test_any_truncation_is_found(size: int) -> None:
    expected = f"is not what its receipt says, {len(SHARD)} bytes with sha256"
    refused(SHARD[:size], receipt_of(SHARD), expected)


def member_ends() -> list[int]:
    with tarfile.open(fileobj=io.BytesIO(SHARD)) as tar:
        return [member.offset for member in tar][1:]


@pytest.mark.parametrize(("member", "end"), list(enumerate(member_ends(), start=1)))
def test_truncation_at_a_member_is_found_without_a_receipt_or_leaves_whole_samples(
    member: int, end: int
) -> None:
    with tarfile.open(fileobj=io.BytesIO(SHARD[:end])) as tar:
        assert tar.getnames()  # tarfile itself sees nothing wrong
    with pytest.raises(CorruptionError, match="without the end mark"):
        list(parse_shard(SHARD[:end], "x"))
    forged = SHARD[:end] + bytes(2 * tarfile.RECORDSIZE - end % tarfile.RECORDSIZE)
    samples, parts = divmod(member, 4)  # a sample has four members
    reader = parse_shard(forged, "x")
    assert [next(reader).key for _ in range(samples)] == [s.key for s in SAMPLES[:samples]]
    if parts:
        with pytest.raises(CorruptionError, match="and one image"):
            next(reader)
    else:
        assert list(reader) == []  # the worker that describes it misses the others


def repack(*changes: Callable[[tarfile.TarFile], None]) -> bytes:
    """A tar with the members of SHARD and what `changes` add."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        with tarfile.open(fileobj=io.BytesIO(SHARD)) as source:
            for member in source:
                tar.addfile(member, source.extractfile(member))
        for change in changes:
            change(tar)
    return stream.getvalue()


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def add(name: str, data: bytes = b"x", **fields: Any) -> Callable[[tarfile.TarFile], None]:
    def change(tar: tarfile.TarFile) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        for field, value in fields.items():
            setattr(member, field, value)
        tar.addfile(member, io.BytesIO(data))

    return change


def add_bytes(data: bytes) -> Callable[[tarfile.TarFile], None]:
    def change(tar: tarfile.TarFile) -> None:
        tar.fileobj.write(data)
        tar.offset += len(data)

    return change


NO_MEMBERS = (
    *("../escape.png", "/etc/cron.d/x.png", "a/b.png", "a\\b.png", "a.b.png", "a.pkl", "a.pyd"),
    *("x.png\n", ".png", "ä.png", "C:x.png", "x" * 300 + ".gif"),
)
NO_FILES = (tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)
HEADERS = (
    {"path": "../../escape.png"},
    {"GNU.sparse.map": "0,1", "GNU.sparse.size": "9"},
    {"size": str(1 << 62)},
    {"comment": "x" * 100_000},
)
BROKEN_HEADERS = (
    {"GNU.sparse.size": "x"},
    {"GNU.sparse.map": "x,y"},
    {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        *((add(name), "not a plain file") for name in NO_MEMBERS),
        *((add("x.png", b"", type=kind), "not a plain file") for kind in NO_FILES),
        (add("l.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "not a plain file"),
        (add("l.png", b"", type=tarfile.LNKTYPE, linkname=f"{SAMPLES[0].key}.png"), "not a plain"),
        *((add("x.png", pax_headers=each), "not a plain file") for each in HEADERS),
        *((add("s.png", pax_headers=each), "no readable tar") for each in BROKEN_HEADERS),
        # Some versions of tarfile take such a header for the end of the archive.
        (add("x.png", pax_headers={"size": "-512"}), "plain file|unreadable bytes"),
        (add_bytes(header("x.png", 0)[:-1] + b"x"), "bad checksum"),
        (add_bytes(b"\0" + header("x.png", 0)[1:]), "unreadable bytes"),
        (add("b.png", b"", type=tarfile.CONTTYPE), "not a plain file"),
        (add("new.png\0.npy"), "not a plain file"),
        (add(f"{SAMPLES[2].key}.png"), "is there twice"),
        (add(f"{SAMPLES[0].key}.png"), "are not side by side"),
        (add("lonely.png"), "and one image"),
        (add("lonely.json", b"{}"), "and one image"),
        (add(f"{SAMPLES[2].key}.jpg"), "and one image"),
    ],
)
def test_tricks_in_an_archive_are_refused(
    change: Callable[[tarfile.TarFile], None], reason: str
) -> None:
    data = repack(change)
    with pytest.raises(CorruptionError, match=reason):
        list(parse_shard(data, "x"))


@pytest.mark.parametrize(
    "headers",
    [
        header("x.png", 1 << 64),
        header("x.png", 1 << 80),
        header("x", 1 << 63, tarfile.GNUTYPE_LONGNAME),
        header("x", 0, tarfile.XHDTYPE) * 5000 + header("x.png", 0),
        header("x", 0, tarfile.GNUTYPE_LONGNAME) * 5000 + header("x.png", 0),
        header("x.png", MAX_MEMBER_BYTES + 1),
    ],
    ids=["2**64", "2**80", "name of 2**63 bytes", "pax chain", "long name chain", "a huge member"],
)
def test_headers_that_no_program_writes_are_refused(headers: bytes) -> None:
    data = headers + bytes(2 * tarfile.RECORDSIZE - len(headers) % tarfile.RECORDSIZE)
    with pytest.raises(CorruptionError, match=r"shard x: no readable tar|has \d+ bytes, at most"):
        list(parse_shard(data, "x"))


def npy(array: np.ndarray[Any, Any], **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


DISTANCES, EMBEDDING = (npy(SAMPLES[0].arrays[name]) for name in ("distances", "embedding"))


def with_sample(metadata: bytes, distances: bytes = DISTANCES) -> bytes:
    """SHARD with one more sample, `z`."""
    arrays = add("z.distances.npy", distances), add("z.embedding.npy", EMBEDDING)
    return repack(add("z.png"), add("z.json", metadata), *arrays)


TEXT = json.dumps(SAMPLES[0].metadata)
METADATA = TEXT.encode()
RAN = Path(tempfile.gettempdir(), "dfkd-test-pickle-ran")


def test_a_sample_that_another_program_adds_can_be_read() -> None:
    assert [sample.key for sample in parse_shard(with_sample(METADATA), "x")][3:] == ["z"]


def refuse_sample(data: bytes) -> None:
    """Hold a shard with a fourth sample to be refused for that."""
    with pytest.raises(CorruptionError, match="sample 'z'"):
        list(parse_shard(data, "x"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff\xff{",
        b"\x93NUMPY\x03\x00" + npy(np.zeros(2, np.float32))[8:],
        npy(np.array([Mark(RAN)], object), allow_pickle=True),
        pickle.dumps(Mark(RAN)),
        npy(np.zeros((2, 2), np.float32, order="F")),
        npy(np.zeros(2, np.float64)),
        npy(np.zeros(2, np.float32))[:-1],
        npy(np.zeros(2, np.float32)) + b"x",
        npy(np.zeros(2, np.float32)).replace(b"(2,)", b"(9999999999,)", 1),
        npy(np.zeros(2, np.float32)).replace(b"(2,)", b"(-2,)", 1),
        npy(np.array([1, np.nan], np.float32)),
        npy(np.array([np.inf, 1], np.float32)),
        npy(np.zeros(2, np.dtype(">f4"))),
        npy(np.zeros(2, np.dtype([("a", "<f4")]))),
        npy(np.array(3, np.float32)),
        npy(np.zeros(2, np.float32)).replace(b"<f4", b"|O8", 1),
        npy(np.zeros(2, np.float32)).replace(b"(2,)", b"(1<<40,)", 1),
        npy(np.zeros(2, np.float32)).replace(b"{", b"__import__('os').abort() or {", 1),
        b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{",
    ],
)
def test_arrays_that_are_no_plain_arrays_are_refused(content: bytes) -> None:
    refuse_sample(with_sample(METADATA, content))
    assert not RAN.exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "{",
        '{"class": 3}',
        "[" * 10**6,
        TEXT.replace('"loss": 0.5', '"loss": NaN'),
        TEXT.replace('"loss": 0.5', '"loss": 1e999'),
        TEXT.replace('"loss": 0.5', '"loss": true'),
        TEXT.replace('"loss": 0.5', '"loss": 0.5, "loss": 0.25'),
        TEXT.replace('"steps": 20', '"steps": ' + "9" * 5000),
        TEXT.replace('"class": "owl"', r'"class": "\ud800"'),
        TEXT.replace('"steps": 20', '"steps": 20, "more": NaN'),
        TEXT.replace('"steps": 20', '"steps": 20, "more": ' + "[" * 5000 + "]" * 5000),
    ],
)
def test_invalid_metadata_is_refused(text: str) -> None:
    refuse_sample(with_sample(text.encode()))


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(SHARD) - 1), st.integers(0, 255)), max_size=8))
@example([(257, 0), (0, 0)])
def test_a_damaged_tar_ends_in_one_kind_of_error(changes: list[tuple[int, int]]) -> None:
    data = bytearray(SHARD)
    for place, value in changes:
        data[place] = value
    with contextlib.suppress(CorruptionError):
        list(parse_shard(bytes(data), "x"))


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(DISTANCES) - 1), st.integers(0, 255)), min_size=1))
def test_a_damaged_array_ends_in_one_kind_of_error(changes: list[tuple[int, int]]) -> None:
    content = bytearray(DISTANCES)
    for place, value in changes:
        content[place] = value

    with contextlib.suppress(CorruptionError):
        for sample in parse_shard(with_sample(METADATA, bytes(content)), "x"):
            assert sample.arrays["distances"].dtype == np.float32


ARRAYS, LARGE = SAMPLES[0].arrays, MAX_MEMBER_BYTES + 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"key": "a.b"}, "no such member"),
        ({"key": "../a"}, "no such member"),
        ({"extension": "gif"}, "no such member"),
        ({"metadata": SAMPLES[0].metadata | {"seed": "1"}}, r"seed\n.*valid integer"),
        ({"metadata": SAMPLES[0].metadata | {"loss": float("nan")}}, r"loss\n.*finite number"),
        ({"metadata": SAMPLES[0].metadata | {"prompt": "\ud800"}}, "surrogates not allowed"),
        ({"arrays": {}}, "arrays must be .*, are"),
        (
            {"arrays": ARRAYS | {"distances": np.zeros(2)}},
            "must be float32 with 1 axis, is float64",
        ),
        ({"arrays": ARRAYS | {"extra": np.array([Mark(RAN)], object)}}, "arrays must be"),
        ({"image": bytes(LARGE)}, rf"member 'png' \({LARGE} bytes\)"),
    ],
)
def test_a_writer_is_told_what_breaks_the_format(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        write_shard([dataclasses.replace(SAMPLES[0], **changes)], tmp_path / "x")


def test_a_key_given_twice_is_the_writers_defect(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same key"):
        write_shard([SAMPLES[0], SAMPLES[0]], tmp_path / "x")
