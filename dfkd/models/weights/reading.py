"""Weight files to tensors and configurations to mappings, without running any code of a file.

No other module opens a checkpoint. safetensors holds only tensors. `torch.save` files are pickles,
which are read with `weights_only=True`. TorchScript is refused: `torch.jit.load` would compile it
and may run a `__setstate__` in it.
"""

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dfkd.config.paths import local_path
from dfkd.errors import DfkdError, WeightsError, one_line, shorten
from dfkd.models.weights.pickles import CALLBACK, require_plain
from dfkd.utils import strict_json

MAX_CONFIGURATION = 1 << 20
"""Bytes of a configuration file at most; published ones have some kilobytes."""

MAX_SHARING = 4
"""Bytes of all tensors at most, in multiples of the file's: some share their storage."""

_ELSEWHERE = "give the path of an intact file with tensors only, or download it again"
_CONVERTED = (
    "for OpenAI's CLIP give the tag openai, which dfkd fetch takes from the hub; "
    "save the tensors of others as safetensors"
)

DTYPES = (
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
"""The types of numbers of published weights."""


def existing_file(field: str, path: str | Path) -> Path:
    """`path` with `~` expanded, if it is a file.

    Args:
        field: the manifest key that an error names.

    Raises:
        WeightsError: there is no such file.
    """
    expanded = local_path(path)
    if not expanded.is_file():
        raise WeightsError(field, "must be an existing file", str(path), "check the path")
    return expanded


def read_json(field: str, path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in a configuration file.

    Args:
        field: the manifest key that an error names.

    Raises:
        WeightsError: the file is missing, or holds something else.
    """
    try:
        with existing_file(field, path).open("rb") as stream:
            data = stream.read(MAX_CONFIGURATION + 1)
        if len(data) > MAX_CONFIGURATION:
            raise ValueError(f"more than {MAX_CONFIGURATION} bytes")
        tree = strict_json.parse(data)
        if not isinstance(tree, dict):
            raise ValueError("not an object")
    except ValueError as error:
        rule = f"must be a JSON object ({str(error)[:80]})"
        raise WeightsError(field, rule, str(path), remedy) from None
    return tree


def read_state_dict(field: str, path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU, possibly memory-mapped.

    `{"state_dict": ...}` is unwrapped, and the prefix `module.` of DDP is removed.

    Args:
        field: the manifest key that an error names.
        path: a safetensors file or a `torch.save` file.

    Raises:
        WeightsError: the file is missing or corrupt, or holds something other than plain tensors.
    """
    path = existing_file(field, path)
    try:
        tree = _read(field, path)
    except DfkdError:
        raise
    except Exception as error:  # torch's parsers have no common error for a damaged file
        # torch's reason comes after its advice to run what is in the file.
        reason = shorten(str(error).rpartition("WeightsUnpickler error: ")[2]) or one_line(error)
        raise WeightsError(
            field, f"must be a readable checkpoint ({reason})", str(path), _ELSEWHERE
        ) from None
    state = tree.get("state_dict", tree) if isinstance(tree, Mapping) else tree
    if not isinstance(state, Mapping) or not state:
        raise WeightsError(field, "must hold a state dict", str(path), _ELSEWHERE)
    # `weights_only` also allows numbers, strings and containers.
    for key, value in state.items():
        if not isinstance(key, str) or not _is_plain(value):
            # Nested tuples of a few bytes can have a text of gigabytes.
            shown = repr(key) if isinstance(key, str) else f"a key that is a {type(key).__name__}"
            rule = f"must hold plain tensors only, not {shown}"
            raise WeightsError(field, rule, str(path), _ELSEWHERE)
    # Many tensors may also share one storage; some published weights share a few.
    if sum(value.nbytes for value in state.values()) > MAX_SHARING * path.stat().st_size:
        rule = f"must not hold tensors of more than {MAX_SHARING} times the file's size"
        raise WeightsError(field, rule, str(path), _ELSEWHERE)
    if all(key.startswith("module.") for key in state):
        return {key.removeprefix("module."): value for key, value in state.items()}
    return dict(state)


def match(
    field: str, path: Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], remedy: str
) -> None:
    """Check that `state` has exactly the names, shapes and kinds of numbers of `expected`.

    Raises:
        WeightsError: a tensor is missing, unexpected, of another shape or not of floats; the text
            names the first ones.
    """
    problems = _listed("lacks", sorted(expected.keys() - state.keys()))
    problems += _listed("has no use for", sorted(state.keys() - expected.keys()))
    shapes = [
        f"{key} {tuple(state[key].shape)} for {tuple(expected[key].shape)}"
        for key in sorted(expected.keys() & state.keys())
        if state[key].shape != expected[key].shape
    ]
    problems += _listed("differs in shape at", shapes)
    # Rounded to whole numbers, as quantised weights are, they would load and mean nothing.
    kinds = [
        key
        for key in sorted(expected.keys() & state.keys())
        if state[key].is_floating_point() != expected[key].is_floating_point()
    ]
    problems += _listed("differs in kind of numbers at", kinds)
    if problems:
        rule = f"must match the architecture, but it {'; '.join(problems)}"
        raise WeightsError(field, rule, str(path), remedy)


def load_into(field: str, path: Path, module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy `state`, which `match` has checked, into `module`.

    Raises:
        WeightsError: a value is NaN or infinite.
    """
    # A single NaN would reach every image without any error.
    for key, value in state.items():
        # The module holds float32, which a float64 may exceed.
        stored = value.float() if value.dtype == torch.float64 else value
        if value.is_floating_point() and not bool(torch.isfinite(stored).all()):
            raise WeightsError(field, f"must be finite, but {key} is not", str(path), _ELSEWHERE)
    module.load_state_dict(state, strict=True)


def _is_plain(value: object) -> bool:
    """Whether a value is a dense tensor of a usual type, as every published weight is."""
    # torch cannot check or copy others, or loses a part of them, such as the imaginary one.
    return (
        isinstance(value, Tensor)
        and not value.is_nested
        and not value.is_meta
        and value.layout == torch.strided
        and value.dtype in DTYPES
        # A view with strides of 0 has any shape over a few bytes, and loading it takes the shape's.
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _read(field: str, path: Path) -> Any:
    """What a checkpoint holds; the content tells its format, because names often lie."""
    # safetensors begin with the length of the header, then its JSON object.
    with path.open("rb") as stream:
        head = stream.read(9)
    if head[8:] == b"{" and 0 < struct.unpack("<Q", head[:8])[0] <= path.stat().st_size:
        return load_file(path, device="cpu")
    # Since torch 1.6 files are zips, which can be mapped into memory; older ones are bare pickles.
    zipped = zipfile.is_zipfile(path)
    if zipped:
        _check_archive(field, path)
    require_plain(path, zipped)
    # The published VQGANs hold a callback of the library that trained them. It is the only global
    # beyond torch's own list that a file may name, and it becomes an empty object.
    with torch.serialization.safe_globals([(_Callback, CALLBACK.replace(" ", "."))]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def _check_archive(field: str, path: Path) -> None:
    """Refuse TorchScript and damage; `torch.load` ignores a zip file's checksums."""
    with zipfile.ZipFile(path) as archive:
        # Before all else, because TorchScript compresses its code.
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            rule = "must hold tensors only, not TorchScript"
            raise WeightsError(field, rule, str(path), _CONVERTED)
        for member in archive.infolist():
            # torch never compresses; a zip bomb does.
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename} is compressed")
        # One member under many names would be read once for each of them.
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise ValueError("its members overlap")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"bad CRC-32 of {damaged}")


class _Callback:
    """Replaces the Lightning class that old VQGAN checkpoints contain."""


def _listed(what: str, names: list[str]) -> list[str]:
    """A phrase with the first three of `names`, or nothing if there are none."""
    if not names:
        return []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"{what} {', '.join(names[:3])}{more}"]
