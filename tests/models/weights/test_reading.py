"""Untrusted checkpoints: what is read, what is refused, and that no code in them runs."""

import pickle
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
from dfkd.models.weights.reading import load_into, match, read_json, read_state_dict
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
    assert same(read_state_dict("generator.vqgan.weights", tmp_path / "last.ckpt"))
    assert name not in sys.modules


def test_pickled_code_is_refused_and_never_runs(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"state_dict": STATE, "hook": Mark(mark)}, tmp_path / "bomb.ckpt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Mark(mark)))
    for name in ("bomb.ckpt", "raw.pt"):
        assert "must be a readable checkpoint (" in refusal(tmp_path / name)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content", [{"state_dict": {"a": 1}}, {"state_dict": {}}, [torch.zeros(1)], {1: torch.zeros(1)}]
)
def test_content_other_than_a_state_dict_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "odd.pt")
    refusal(tmp_path / "odd.pt")


def test_tensors_that_are_not_plain_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1), "b": torch.zeros(2) * 1j}, tmp_path / "odd.pt")
    assert "must hold plain tensors only, not 'b'" in refusal(tmp_path / "odd.pt")


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(2).to(torch.float8_e4m3fn),
        torch.zeros(2, device="meta"),
        torch.eye(2).to_sparse(),
        torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)]),
        bytes(9),
        bytearray(9),
    ],
    ids=["float8", "meta", "sparse", "nested", "bytes", "bytearray"],
)
def test_what_no_weights_need_is_refused_before_it_is_made(value: object, tmp_path: Path) -> None:
    """Some of it would fill as much memory as a number in the file says."""
    torch.save({"a": torch.zeros(1), "b": value}, tmp_path / "odd.pt")
    assert "has no place among weights" in refusal(tmp_path / "odd.pt")


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": torch.zeros(1).expand(1 << 10, 1 << 10)},
        dict.fromkeys(map(str, range(100)), torch.zeros(1000)),
    ],
    ids=["expanded", "shared"],
)
def test_a_checkpoint_cannot_claim_more_than_its_file_holds(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(tensors, tmp_path / "odd.pt")
    assert " hold" in refusal(tmp_path / "odd.pt")


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
    refusal(tmp_path / "odd.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_key_of_nested_tuples_is_refused_before_it_is_hashed(
    tmp_path: Path, zipped: bool
) -> None:
    """Hashing takes twice as long with each level, and the file grows by some bytes."""
    key: object = ()
    for _ in range(64):
        key = (key, key)
    path = tmp_path / "odd.pt"
    torch.save([key], path, _use_new_zipfile_serialization=zipped)  # as a key it takes for ever
    assert "tuples in each other" in refusal(path)


def test_a_configuration_of_more_than_a_megabyte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"{}".ljust(1 << 20))
    assert read_json("generator.vqgan.weights", path, "give another") == {}
    path.write_bytes(b"{}".ljust((1 << 20) + 1))
    with pytest.raises(WeightsError, match="more than 1048576 bytes"):
        read_json("generator.vqgan.weights", path, "give another")


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


def test_torchscript_is_refused_and_never_compiled(tmp_path: Path) -> None:
    """As `torch.jit.save` writes it, with code that is compressed; OpenAI published such files."""
    path = tmp_path / "ViT-B-32.pt"
    with warnings.catch_warnings(action="ignore"):  # TorchScript is deprecated, its files are not
        torch.jit.script(nn.Linear(3, 2)).save(str(path))
    reasons = ("must hold tensors only, not TorchScript", "give the tag openai", "safetensors")
    assert all(reason in refusal(path) for reason in reasons)


def test_a_compressed_archive_which_could_be_a_bomb_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE}, tmp_path / "plain.ckpt")
    bomb = tmp_path / "bomb.ckpt"
    with (
        zipfile.ZipFile(tmp_path / "plain.ckpt") as old,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, bytes(1 << 26) if name.endswith("/data/0") else old.read(name))
    assert bomb.stat().st_size < 1 << 18
    assert "is compressed" in refusal(bomb)


def test_a_flipped_bit_is_refused_where_the_format_has_checksums(tmp_path: Path) -> None:
    path, values = tmp_path / "plain.pt", torch.arange(1000.0)
    torch.save({"a": values}, path)
    raw = bytearray(path.read_bytes())
    place = raw.find(values.numpy().tobytes())
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
