"""What a pickle of weights may do, read before torch executes it.

torch's own reader calls only functions of a list, but some of them, and keys of dictionaries, fill
any memory or never end: `_codecs.encode` in a chain, tuples of the same tuple.
"""

import pickletools
import zipfile
from pathlib import Path
from typing import Any

CALLBACK = "pytorch_lightning.callbacks.model_checkpoint ModelCheckpoint"
"""The class of the library that trained the published VQGANs, which their files hold."""

MAX_NESTING = 8
"""Tuples in tuples at most. The key of a dictionary is hashed through all of them, and each tuple
may hold the one before twice."""
LEGACY_PICKLES = 5
"""Pickles at the beginning of a file older than torch 1.6: magic number, version, machine, weights
and keys of storages."""

_GLOBALS = {
    "__builtin__ set",
    "builtins set",
    "collections Counter",
    "collections OrderedDict",
    "torch Size",
    "torch device",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    CALLBACK,
}
"""All that a file of weights names, beside storages and types of numbers: containers, tensors, and
what a training has left beside them."""
_TYPES = ("float", "bfloat", "int", "uint", "bool", "complex")
"""What the names of torch's types of numbers begin with."""


def require_plain(path: Path, zipped: bool) -> None:
    """Raise `ValueError` if a torch file does more than to rebuild tensors.

    Args:
        path: a zip whose members are stored as they are, or a file of bare pickles.
        zipped: whether it is the zip.
    """
    if zipped:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".pkl"):
                    with archive.open(name) as stream:
                        _walk(stream)
        return
    with path.open("rb") as stream:
        for _ in range(LEGACY_PICKLES):
            _walk(stream)


def _walk(stream: Any) -> None:
    """Read one pickle, keeping of each value on its stack how deep tuples are nested in it."""
    stack: list[int | None] = []  # None is a mark
    memo: dict[int, int] = {}
    for operation, argument, _ in pickletools.genops(stream):
        name = operation.name
        if name in ("GLOBAL", "INST"):
            named = str(argument)
            module, _, word = named.partition(" ")
            # Storages and types of numbers have many names, and none of them does anything.
            kind = word.endswith("Storage") or word.startswith(_TYPES)
            harmless = module in ("torch", "torch.storage") and kind
            if named not in _GLOBALS and not harmless:
                raise ValueError(f"it names {named[:80]!r}, which has no place among weights")
        elif name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
            raise ValueError(f"a pickle with {name}, which torch does not write")
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[int(argument or 0)] = _top(stack)
            continue
        if name == "MEMOIZE":
            memo[len(memo)] = _top(stack)
            continue
        depth = _taken(operation, stack)
        if name in ("GET", "BINGET", "LONG_BINGET"):
            depth = memo.get(int(argument or 0), 0)
        elif name.startswith("TUPLE"):
            depth += 1
        if depth > MAX_NESTING:
            raise ValueError(f"a pickle with more than {MAX_NESTING} tuples in each other")
        stack += [
            None if kind is pickletools.markobject else depth for kind in operation.stack_after
        ]


def _top(stack: list[int | None]) -> int:
    """The depth of the value on top of the stack."""
    return stack[-1] or 0 if stack else 0


def _taken(operation: pickletools.OpcodeInfo, stack: list[int | None]) -> int:
    """Take an operation's operands from the stack; returns the largest depth among them."""
    depth = 0
    if pickletools.markobject in operation.stack_before:
        while stack and (value := stack.pop()) is not None:
            depth = max(depth, value)
        rest = operation.stack_before.index(pickletools.markobject)
    else:
        rest = len(operation.stack_before)
    for _ in range(min(rest, len(stack))):
        depth = max(depth, stack.pop() or 0)
    return depth
