"""The tensors of a TorchScript archive, without running any of it.

Such an archive is a zip with the module's code (`code/`), its attributes as a pickle (`data.pkl`)
and the raw storages (`data/0`, `data/1`, ...). `torch.jit.load` would compile the code and call any
`__setstate__` in it. Here a restricted unpickler reads only `data.pkl`. The archive's own classes
become nodes without behaviour, and every function that is not in `_ALLOWED` is refused.
"""

import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict, deque
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

MAX_NODES = 100_000
"""Maximal number of modules and tensors; n modules that contain the next one twice make 2^n."""

MAX_NAME = 1000
"""Maximal length of a tensor's name. A name holds those of all modules above, so a long one that
stands once in the file would be copied for each tensor below."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The parameters, buffers and tensor attributes of a TorchScript file by dotted name.

    Raises:
        ValueError, pickle.UnpicklingError, zipfile.BadZipFile: not such a file, or it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        root = _root(archive)
        module = _Unpickler(archive, root).load()
    return _collect(module)


class _Node:
    """Replaces an object of one of the archive's own classes."""

    def __setstate__(self, state: object) -> None:
        self.attributes = state if isinstance(state, dict) else {}


def _first_argument(value: object, *_: object) -> object:
    """The value itself, in place of functions that give a value its TorchScript type."""
    return value


_ALLOWED: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": OrderedDict,
    **{
        f"torch.jit._pickle.{name}": _first_argument
        for name in (
            "build_intlist",
            "build_tensorlist",
            "build_doublelist",
            "build_boollist",
            "restore_type_tag",
        )
    },
}


class _Unpickler(pickle.Unpickler):
    """Reads `data.pkl`; every class and function that it names goes through `find_class`."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        data = _stored(archive, f"{root}/data.pkl")
        _refuse_sparse_memo(data)
        super().__init__(BytesIO(data), encoding="utf-8")
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}
        # Twice the file, because some tensors share a storage. Each of a few bytes of the pickle
        # could ask for a copy of the largest storage.
        self._bytes_left = 2 * sum(entry.file_size for entry in archive.infolist())

    def find_class(self, module: str, name: str) -> Any:
        """The replacement of a class or function that the pickle names; all others are refused."""
        # The classes that the archive defines itself, in its folder `code`.
        if module == "__torch__" or module.startswith("__torch__."):
            return _Node
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if f"{module}.{name}" == "torch._utils._rebuild_tensor_v2":
            return self._rebuild
        if f"{module}.{name}" in _ALLOWED:
            return _ALLOWED[f"{module}.{name}"]
        raise pickle.UnpicklingError(f"{module}.{name} has no place among weights")

    def _rebuild(
        self,
        storage: Tensor,
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        *_: object,
    ) -> Tensor:
        """A tensor from its storage, in place of `torch._utils._rebuild_tensor_v2`."""
        if math.prod(size) > len(storage):  # with stride 0 a few bytes could be any size
            raise pickle.UnpicklingError("a tensor is larger than its storage")
        self._bytes_left -= math.prod(size) * storage.element_size()
        if self._bytes_left < 0:
            raise pickle.UnpicklingError("its tensors are larger than the file")
        # A copy, so that a view of a few values does not keep a whole storage.
        return torch.as_strided(storage, size, stride, offset).clone()

    def persistent_load(self, pid: Any) -> Tensor:
        """The storage of a reference ("storage", type, file, device, number of elements)."""
        kind, dtype, key, _, count = pid
        # Nested tuples as a file's name would take gigabytes as a text.
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError("a storage reference is malformed")
        # Tensors may share a storage, which is read once.
        if key not in self._storages:
            # A `bytearray`, because torch warns of tensors on memory that cannot be written.
            raw = bytearray(_stored(self._archive, f"{self._root}/data/{key}"))
            self._storages[key] = torch.frombuffer(raw, dtype=dtype, count=count)
        return self._storages[key]


def _refuse_sparse_memo(data: bytes) -> None:
    """Raise `UnpicklingError` if the pickle numbers an object higher than it has bytes.

    Python keeps remembered objects in an array, so a high number alone takes gigabytes.
    """
    for opcode, argument, _ in pickletools.genops(data):
        if "PUT" in opcode.name and isinstance(argument, int) and argument > len(data):
            raise pickle.UnpicklingError(f"memo {argument} of {len(data)} bytes")


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of a member that is not compressed: PyTorch never compresses, a zip bomb does."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    return archive.read(name)


def _root(archive: zipfile.ZipFile) -> str:
    """The top folder of the archive, which has the name of the saved file."""
    for name in archive.namelist():
        root, slash, rest = name.partition("/")
        if slash and rest == "data.pkl":
            return root
    raise ValueError("the archive has no data.pkl")


def _collect(root: object) -> dict[str, Tensor]:
    """All tensors below `root` by dotted name."""
    tensors: dict[str, Tensor] = {}
    queue = deque([("", root)])
    visited = 0
    while queue:
        prefix, node = queue.popleft()
        if isinstance(node, Tensor):
            tensors[prefix] = node
        elif isinstance(node, _Node):
            for key, value in node.attributes.items():
                if not isinstance(key, str) or len(prefix) + len(key) >= MAX_NAME:
                    raise ValueError(f"a name is no text of less than {MAX_NAME} characters")
                queue.append((f"{prefix}.{key}" if prefix else key, value))
        visited += 1
        # Modules may refer to each other in cycles, so only these limits end the walk.
        if visited + len(queue) > MAX_NODES:
            raise ValueError(f"it has more than {MAX_NODES} modules and tensors")
    return tensors
