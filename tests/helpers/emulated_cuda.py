"""A CUDA device that the CPU emulates, in a process that does nothing else.

A tensor of the device is a `DeviceTensor` around one of the CPU, which computes all numbers.
torch's dispatch, autograd and autocast treat it as CUDA's. What a real device refuses is refused:
tensors of two devices in one operation, a random generator of the other device, and NumPy on its
memory. Kernels, memory and time cannot be seen here.

The process needs the library that `build` makes in LD_PRELOAD, and a torch that was built without
CUDA. It must end by `os._exit`, because torch would wait for its device's thread.
"""

import functools
import shutil
import subprocess
import threading
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.onnx
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
COMPILER = shutil.which("c++")

ATEN = torch.ops.aten
COPIES = (ATEN._to_copy.default, ATEN.copy_.default)
"""Operations whose tensors may be on two devices."""
INDEXED = (ATEN.index.Tensor, ATEN.index_put_.default, ATEN._index_put_impl_.default)
"""Operations that move indices from the CPU to a tensor of the device, and not the other way."""


def build(folder: Path) -> Path:
    """Compile the library for LD_PRELOAD into `folder`; returns its path."""
    spec = find_spec("torch")
    assert COMPILER
    assert spec
    assert spec.origin
    torch_folder, library = Path(spec.origin).parent, folder / "libemulated_cuda.so"
    source = Path(__file__).with_suffix(".cpp")
    options = ["-std=c++20", "-shared", "-fPIC", f"-I{torch_folder}/include"]
    linked = [f"-L{torch_folder}/lib", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch_folder}/lib"]
    subprocess.run([COMPILER, *options, source, "-o", library, *linked], check=True)
    return library


class Operations:
    """What has been done on the device."""

    count = 0


class DeviceTensor(Tensor):
    """A tensor of the device around the tensor of the CPU that has its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "DeviceTensor":
        tensor: DeviceTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        tensor.inner = inner
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _call(func, args, kwargs or {})

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        """Refused, as by torch."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def tolist(self) -> Any:
        """The numbers; torch's own method refuses every subclass."""
        return self.inner.tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied: Tensor = DeviceTensor(self.inner.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied


class _Mode(TorchDispatchMode):
    """Handles the operations that make tensors of the device from none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do an operation of torch on the inner tensors."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    reads_device = any(isinstance(tensor, DeviceTensor) for tensor in tensors)
    if reads_device:
        Operations.count += 1
        _require_one_device(func, args, tensors)
    asked = kwargs.get("device")
    on_device = reads_device if asked is None else torch.device(asked).type == "cuda"
    if (generator := kwargs.get("generator")) is not None:
        _require_device_of_numbers(func, generator, on_device)
    inner_args, inner_kwargs = tree_map(_inner, (args, kwargs))
    with _disable_current_modes():
        result = func(*inner_args, **inner_kwargs)
    # An operation in place gives back the tensor that it was given.
    if any(each.alias_info and each.alias_info.is_write for each in func._schema.returns):
        return kwargs.get("out", args[0])
    return tree_map(_outer, result) if on_device else result


def _require_one_device(func: Any, args: Any, tensors: list[Tensor]) -> None:
    """Raise as CUDA does for an operation on tensors of two devices."""
    if func in INDEXED:
        allowed = isinstance(args[0], DeviceTensor)
    else:
        # Of a scalar on the CPU the value is passed to the kernel.
        others = [t for t in tensors if not isinstance(t, DeviceTensor) and t.dim() > 0]
        allowed = func in COPIES or not others
    if not allowed:
        shapes = [(tuple(t.shape), type(t).__name__) for t in tensors]
        raise RuntimeError(f"expected all tensors to be on the same device: {func} of {shapes}")


def _require_device_of_numbers(func: Any, generator: Any, on_device: bool) -> None:
    """Raise as CUDA does for a random generator of the other device."""
    if (_address(generator) in _Generator.of_device) != on_device:
        raise RuntimeError(f"{func}: the generator and the numbers are on two devices")


def _inner(value: Any) -> Any:
    """An argument for the CPU."""
    if isinstance(value, DeviceTensor):
        return value.inner
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _outer(value: Any) -> Any:
    """A result on the device."""
    return DeviceTensor(value) if isinstance(value, Tensor) else value


def _address(generator: Any) -> int:
    """The address of a generator in C++, which all Python objects for it share."""
    address: int = generator._cdata
    return address


class _Generator(torch.Generator):
    """A generator that knows the device that it was made for."""

    of_device: ClassVar[dict[int, torch.Generator]] = {}
    """Those of the device; kept, so that no address is used twice."""

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        generator = super().__new__(cls)
        if torch.device(device).type == "cuda":
            cls.of_device[_address(generator)] = generator
        return generator

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The device that it was made for."""
        return DEVICE if _address(self) in self.of_device else torch.device("cpu")


def install() -> None:
    """From now on this process has one CUDA device."""
    replaced: dict[Any, dict[str, Any]] = {
        torch.cuda: {
            "_initialized": True,
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "set_device": lambda device: None,
            "get_device_name": lambda device=None: "emulated",
            "is_bf16_supported": lambda including_emulation=True: True,
            "empty_cache": lambda: None,
            "synchronize": lambda device=None: None,
            "manual_seed": lambda seed: None,
            "get_rng_state": lambda device=None: torch.zeros(1, dtype=torch.uint8),
            "set_rng_state": lambda state, device=None: None,
        },
        torch: {
            "Generator": _Generator,
            "tensor": _on_device_after(torch.tensor),
            "as_tensor": _on_device_after(torch.as_tensor),
            # torch has no version counter for a tensor that wraps another one in inference mode.
            "inference_mode": lambda mode=True: torch.no_grad() if mode else nullcontext(),
        },
        torch.onnx: {"export": _on_cpu(torch.onnx.export)},
        Tensor: {"pin_memory": lambda self: self},
        threading.Thread: {"run": _in_mode(threading.Thread.run)},
    }
    for owner, values in replaced.items():
        for name, value in values.items():
            setattr(owner, name, value)
    # A module that is moved gets new parameters, because `DeviceTensor` is another class.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    _Mode().__enter__()


def _on_cpu(work: Callable[..., Any]) -> Callable[..., Any]:
    """`work` without the emulation, for what has a mode of its own and knows only the CPU."""

    @functools.wraps(work)
    def done(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return work(*args, **kwargs)

    return done


def _on_device_after(make: Any) -> Any:
    """`make`, which torch does not dispatch, with a copy to the device after it."""

    def made(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        tensor: Tensor = make(data, **options)
        return tensor if device is None else tensor.to(device)

    return made


def _in_mode(run: Any) -> Any:
    """`Thread.run` in a mode of its own, because modes belong to threads."""

    def run_in_mode(self: threading.Thread) -> None:
        with _Mode():
            run(self)

    return run_in_mode
