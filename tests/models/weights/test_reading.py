"""Untrusted checkpoints: what is read, what is refused, and that no code in them runs."""

import io
import pickle
import struct
import sys
import types
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dfkd.errors import Exit, WeightsError
from dfkd.models.weights import torchscript
from dfkd.models.weights.reading import (
    is_torchscript,
    load_into,
    match,
    read_json,
    read_state_dict,
)
from tests.helpers.pickles import Mark

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2])}


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        read_state_dict("teacher.weights", path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("teacher.weights: must")
    assert str(path) in text
    assert caught.value.exit_code == Exit.USAGE
    return text


def same(found: dict[str, Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[k], STATE[k]) for k in STATE)


def test_every_format_gives_the_same_tensors_whatever_its_suffix(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "plain.pt")
    torch.save({"state_dict": STATE, "epoch": 1}, tmp_path / "wrapped.bin")
    torch.save({f"module.{key}": value for key, value in STATE.items()}, tmp_path / "ddp.pth")
    torch.save(STATE, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(STATE, tmp_path / "tensors.ckpt")
    for path in sorted(tmp_path.iterdir()):
        assert same(read_state_dict("teacher.weights", path)), path.name


def test_old_lightning_checkpoints_name_their_callback_class(tmp_path: Path) -> None:
    """As the published VQGANs do; the class is not imported, and not needed."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    callback = type("ModelCheckpoint", (), {"__module__": name})
    module.ModelCheckpoint = callback  # type: ignore[attr-defined]
    parents = {p: sys.modules.get(p) for p in ("pytorch_lightning", "pytorch_lightning.callbacks")}
    try:
        for parent in parents:
            sys.modules.setdefault(parent, types.ModuleType(parent))
        sys.modules[name] = module
        content = {"callbacks": {callback: {"best_model_score": 0.5}}, "state_dict": STATE}
        torch.save(content, tmp_path / "last.ckpt")
    finally:
        for missing in [name, *(parent for parent, found in parents.items() if found is None)]:
            sys.modules.pop(missing, None)
    assert same(read_state_dict("generator.weights", tmp_path / "last.ckpt"))
    assert name not in sys.modules


def test_pickled_code_is_refused_and_never_runs(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"state_dict": STATE, "hook": Mark(mark)}, tmp_path / "bomb.ckpt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Mark(mark)))
    for name in ("bomb.ckpt", "raw.pt"):
        assert "must be a readable checkpoint (Unsupported " in refusal(tmp_path / name)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content", [{"state_dict": {"a": 1}}, {"state_dict": {}}, [torch.zeros(1)], {1: torch.zeros(1)}]
)
def test_content_other_than_a_state_dict_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "odd.pt")
    refusal(tmp_path / "odd.pt")


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(2).to(torch.float8_e4m3fn),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2, device="meta"),
        torch.eye(2).to_sparse(),
        torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)]),
    ],
    ids=["float8", "complex", "meta", "sparse", "nested"],
)
def test_tensors_that_are_not_plain_are_refused(value: Tensor, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1), "b": value}, tmp_path / "odd.pt")
    assert "must hold plain tensors only, not 'b'" in refusal(tmp_path / "odd.pt")


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_file(STATE, tmp_path / "tensors.safetensors")
    assert same(read_state_dict("teacher.weights", Path("~/tensors.safetensors")))


@pytest.mark.parametrize(("offset", "value"), [(6, 0xFF), (46, 0xFF)])
def test_a_zip_whose_directory_is_damaged_is_refused(
    offset: int, value: int, tmp_path: Path
) -> None:
    """It claims a later version of zip, or a name that is no text."""
    torch.save(STATE, tmp_path / "odd.pt")
    data = bytearray((tmp_path / "odd.pt").read_bytes())
    start = data.find(b"PK\x01\x02")
    data[start + 9] |= 8  # names are UTF-8
    data[start + offset] = value
    (tmp_path / "odd.pt").write_bytes(data)
    assert not is_torchscript(tmp_path / "odd.pt")
    refusal(tmp_path / "odd.pt")


def test_a_pickle_that_numbers_its_objects_high_takes_no_memory(tmp_path: Path) -> None:
    """Python would make room for 2 ** 32 objects."""
    with zipfile.ZipFile(tmp_path / "odd.pt", "w") as file:
        file.writestr("m/constants.pkl", b"")
        file.writestr("m/data.pkl", b"\x80\x02Nr" + struct.pack("<I", (1 << 32) - 1) + b".")
    assert "memo 4294967295 of 9 bytes" in refusal(tmp_path / "odd.pt")


def test_a_pickle_that_asks_for_a_buffer_is_refused(tmp_path: Path) -> None:
    """torch would fill as many bytes of memory as a number in the file says."""
    path = tmp_path / "odd.pt"
    path.write_bytes(b"\x80\x02cbuiltins\nbytearray\nM\x10\x00\x85R.")
    assert "makes a bytearray" in refusal(path)
    torch.save({**STATE, "more": bytearray(9)}, path)
    assert "makes a bytearray" in refusal(path)


def test_a_key_of_nested_tuples_has_no_long_text(tmp_path: Path) -> None:
    key: object = ()
    for _ in range(16):
        key = (key, key)
    torch.save({key: torch.zeros(1)}, tmp_path / "odd.pt")
    assert "not a key that is a tuple" in refusal(tmp_path / "odd.pt")


def test_a_configuration_of_more_than_a_megabyte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"{}".ljust(1 << 20))
    assert read_json("generator.weights", path, "give another") == {}
    path.write_bytes(b"{}".ljust((1 << 20) + 1))
    with pytest.raises(WeightsError, match="more than 1048576 bytes"):
        read_json("generator.weights", path, "give another")


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    refusal(tmp_path / "none.pt")
    refusal(tmp_path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("kept", [0, 1, 9, 60, 0.5, 0.97])
def test_truncated_files_are_refused(kind: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / "whole"
    state = {"a": torch.ones(500)}
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    refusal(path)


@pytest.mark.parametrize("junk", [b"not a checkpoint", b"PK\x03\x04" + bytes(99), bytes(4096)])
def test_files_that_are_no_checkpoints_are_refused(junk: bytes, tmp_path: Path) -> None:
    (tmp_path / "junk.pt").write_bytes(junk)
    refusal(tmp_path / "junk.pt")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2).half()
        self.norm = nn.BatchNorm1d(2)
        self.tied = self.norm.weight
        self.sizes = [1, 2]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.inner(x.half()).float()) * self.sizes[0]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "archive.pt"
    with warnings.catch_warnings(action="ignore"):  # TorchScript is deprecated, its files are not
        torch.jit.script(Small()).save(str(path))
    return path


def test_a_torchscript_archive_is_read_as_torch_would(archive: Path, tmp_path: Path) -> None:
    found = read_state_dict("teacher.weights", archive)
    with warnings.catch_warnings(action="ignore"):
        expected = torch.jit.load(str(archive)).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert found["inner.weight"].dtype == torch.float16
    assert is_torchscript(archive)
    torch.save(STATE, tmp_path / "plain.pt")
    assert not is_torchscript(tmp_path / "plain.pt")


def rewrite(source: Path, target: Path, changes: dict[str, bytes], how: int = 0) -> None:
    """A copy of an archive; members whose names end with a key of `changes` get its value."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", how) as new:
        for name in old.namelist():
            ends = [end for end in changes if name.endswith(end)]
            new.writestr(name, changes[ends[0]] if ends else old.read(name))


def test_only_tensors_come_out_of_a_torchscript_archive(archive: Path, tmp_path: Path) -> None:
    """Its code is never read, and a class from elsewhere in its pickle is refused."""
    stripped, hostile = tmp_path / "stripped.pt", tmp_path / "hostile.pt"
    mark = tmp_path / "ran"
    rewrite(archive, stripped, {".py": b"this is no program"})
    assert read_state_dict("teacher.weights", stripped).keys()
    rewrite(stripped, hostile, {"/data.pkl": pickle.dumps(Mark(mark))})
    assert "has no place among weights" in refusal(hostile)
    assert not mark.exists()


def test_a_compressed_archive_which_could_be_a_bomb_is_refused(
    archive: Path, tmp_path: Path
) -> None:
    rewrite(archive, tmp_path / "bomb.pt", {"/data/0": bytes(1 << 26)}, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.pt").stat().st_size < 1 << 18
    assert "is compressed" in refusal(tmp_path / "bomb.pt")
    torch.save({"state_dict": STATE}, tmp_path / "plain.ckpt")
    zeros = {"/data/0": bytes(1 << 26)}
    rewrite(tmp_path / "plain.ckpt", tmp_path / "bomb.ckpt", zeros, zipfile.ZIP_DEFLATED)
    assert "is compressed" in refusal(tmp_path / "bomb.ckpt")


class Huge:
    """A tensor of a terabyte in the space of one number: its strides are 0."""

    def __reduce__(self) -> tuple[Any, ...]:
        storage = torch.zeros(1).untyped_storage()
        return torch._utils._rebuild_tensor_v2, (storage, 0, (1 << 20, 1 << 20), (0, 0), False, {})


class Copy:
    """A tensor as large as its storage; of many copies each takes a few bytes of the pickle."""

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.storage = storage

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, (self.storage, 0, (1024,), (1,), False, {})


class Copies:
    """A module with many copies of one storage."""

    def __init__(self, number: int) -> None:
        storage = torch.zeros(1024).untyped_storage()
        self.copies = [Copy(storage) for _ in range(number)]


def test_many_copies_of_one_storage_are_refused(archive: Path, tmp_path: Path) -> None:
    few, many = tmp_path / "few.pt", tmp_path / "many.pt"
    for file, number in ((few, 2), (many, 200)):
        rewrite(archive, file, {"/data.pkl": pickled(Copies(number)), "/data/0": bytes(4096)})
    assert "larger than the file" not in refusal(few)
    assert "larger than the file" in refusal(many)


class View:
    """A transposed matrix in the middle of a storage, as a module's only attribute."""

    def __reduce__(self) -> tuple[Any, ...]:
        storage = torch.zeros(8).untyped_storage()
        return torch._utils._rebuild_tensor_v2, (storage, 2, (2, 2), (1, 2), False, {})


class Holder:
    def __init__(self) -> None:
        self.view = View()


def test_a_view_of_a_storage_is_read_where_it_lies(archive: Path, tmp_path: Path) -> None:
    stored = torch.arange(8.0).numpy().tobytes()
    changes = {"/data.pkl": pickled(Holder()), "/data/0": stored}
    rewrite(archive, tmp_path / "view.pt", changes)
    found = read_state_dict("teacher.weights", tmp_path / "view.pt")
    assert found["view"].tolist() == [[2.0, 4.0], [3.0, 5.0]]


class Nested:
    """A module of the archive whose two attributes are one and the same module."""

    def __init__(self, inner: object) -> None:
        self.left = self.right = inner


class Writer(pickle.Pickler):
    """Writes storages as PyTorch does, by reference."""

    def persistent_id(self, value: object) -> Any:
        if isinstance(value, torch.UntypedStorage):
            return ("storage", torch.FloatStorage, "0", "cpu", value.nbytes() // 4)
        return None


def pickled(value: object) -> bytes:
    stream = io.BytesIO()
    Writer(stream, 2).dump(value)
    return (
        stream.getvalue()
        .replace(b"c__main__\n", b"c__torch__\n")
        .replace(f"c{__name__}\n".encode(), b"c__torch__\n")
    )


def test_a_tensor_larger_than_its_storage_is_refused(archive: Path, tmp_path: Path) -> None:
    changes = {"/data.pkl": pickled(Huge()), "/data/0": bytes(4)}
    rewrite(archive, tmp_path / "huge.pt", changes)
    assert "larger than its storage" in refusal(tmp_path / "huge.pt")
    unnamed = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n)X\x03\x00\x00\x00cpuK\x01tQ."
    rewrite(archive, tmp_path / "huge.pt", {"/data.pkl": unnamed})
    assert "a storage reference is malformed" in refusal(tmp_path / "huge.pt")


def test_modules_that_name_one_another_without_end_are_refused(
    archive: Path, tmp_path: Path
) -> None:
    deep: object = torch.zeros(1).untyped_storage()
    for _ in range(60):
        deep = Nested(deep)
    rewrite(archive, tmp_path / "deep.pt", {"/data.pkl": pickled(deep), "/data/0": bytes(4)})
    assert "modules and tensors" in refusal(tmp_path / "deep.pt")
    loop = Nested(None)
    loop.left = loop
    rewrite(archive, tmp_path / "loop.pt", {"/data.pkl": pickled(loop)})
    long = "a name is no text of less than 1000 characters"
    assert long in refusal(tmp_path / "loop.pt")
    inner, outer = Nested(None), Nested(None)
    vars(inner)["n" * 600], vars(outer)["n" * 600] = None, inner
    rewrite(archive, tmp_path / "long.pt", {"/data.pkl": pickled(outer)})
    assert long in refusal(tmp_path / "long.pt")


def test_a_flipped_bit_is_refused_where_the_format_has_checksums(
    archive: Path, tmp_path: Path
) -> None:
    plain, values = tmp_path / "plain.pt", torch.arange(1000.0)
    torch.save({"a": values}, plain)
    tensors = torchscript.read_tensors(archive)
    for path, stored in ((plain, values), (archive, tensors["inner.weight"])):
        raw = bytearray(path.read_bytes())
        place = raw.find(stored.numpy().tobytes())
        assert place > 0
        raw[place] ^= 1
        path.write_bytes(raw)
        assert "CRC-32" in refusal(path)


def test_weights_that_do_not_fit_the_module_are_summarised() -> None:
    wanted = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}
    state = {
        "a": torch.zeros(2),
        "b": torch.zeros(4),
        **{f"x{i}": torch.zeros(1) for i in range(9)},
    }
    with pytest.raises(WeightsError) as caught:
        match("teacher.weights", Path("w.pt"), state, wanted, "give others")
    text = str(caught.value)
    assert (
        "lacks c; has no use for x0, x1, x2 and 6 more; differs in shape at b (4,) for (3,)" in text
    )
    match("teacher.weights", Path("w.pt"), wanted, wanted, "give others")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_that_are_not_finite_are_refused(dtype: torch.dtype, value: float) -> None:
    module = nn.Linear(2, 1)
    state = {"weight": torch.tensor([[1.0, value]], dtype=dtype), "bias": torch.zeros(1)}
    with pytest.raises(WeightsError, match="must be finite, but weight is not"):
        load_into("teacher.weights", Path("w.pt"), module, state)
