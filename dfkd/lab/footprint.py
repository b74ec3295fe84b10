"""Size of a study's networks, and time of each in PyTorch for one image on one core.

What a run could ship is measured as exported instead (`dfkd.export.candidates`). The milliseconds
depend on the machine, so they are in a separate file, `latency.json`, and no check compares them:

    {"schema": 1, "ms": {name: median}, "batch": 1, "threads": 1, "runs", "machine"}
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, Field, TypeAdapter
from torch import Tensor
from torch.nn import functional as F

from dfkd.config.manifest import Manifest
from dfkd.config.synthesis import TeacherConfig
from dfkd.errors import CorruptionError
from dfkd.evaluation.scoring import parameters
from dfkd.models.student import build
from dfkd.models.teacher import Teacher
from dfkd.models.teacher_architecture import read_architecture
from dfkd.storage.base import SMALL_OBJECT, Storage
from dfkd.utils.hardware import processor_name, time_on_one_core
from dfkd.utils.strict_json import canonical, read_as

FILE = "latency.json"
CPU = torch.device("cpu")
FLOAT32 = 4
"""Bytes of a float32 parameter."""


@dataclass(frozen=True)
class TimedNetwork:
    """The network of a model on the CPU, with its size."""

    name: str
    """Name of the shape; networks of the same shape have the same name."""
    parameters: int
    image_size: int
    answer: Callable[[Tensor], object]
    """Runs the network on pixels [1, 3, S, S] float32."""


def tower(config: TeacherConfig, cache: str) -> TimedNetwork:
    """The image tower of a teacher or text-only classifier; the rest has no part in answering."""
    tower = Teacher.load(config, CPU, cache=cache)
    name = f"{tower.name}, {tower.image_size} px"
    return TimedNetwork(name, parameters(tower.visual), tower.image_size, tower.encode_image)


def student(manifest: Manifest) -> TimedNetwork:
    """A student of the manifest's shape with random weights, which change neither figure."""
    # Without weights nothing is read; a warm-up would be refused, because it needs some.
    config = dataclasses.replace(
        manifest.distillation.of_student(manifest.distillation.architecture),
        weights=("none",),
        warmup_epochs=0,
    )
    size, classes = manifest.synthesis.image_size, len(manifest.classes)
    name = f"{config.architecture}, {size} px, {classes} classes"
    if config.embeds:
        width = int(read_architecture(manifest.teacher.model).model["embed_dim"])
        texts = F.normalize(torch.ones(classes, width), dim=1)
        module = build(config, width, size, seed=0).with_classes(texts)
        name = f"{name}, embedding of {width}"
    else:
        module = build(config, classes, size, seed=0)
    module.eval()
    return TimedNetwork(name, parameters(module), size, module)


def megabytes(parameters: int) -> float:
    """Megabytes (10^6 bytes) of the parameters in float32."""
    return FLOAT32 * parameters / 1e6


class Latency(BaseModel):
    """The fields of `latency.json` that are used; the file has more."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    ms: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    machine: str


def read(storage: Storage) -> Latency:
    """The content of `latency.json`; an empty `ms` if there is no such file.

    Raises:
        CorruptionError: `latency.json` is damaged.
    """
    if not storage.exists(FILE):
        return Latency(ms={}, machine="")
    try:
        return read_as(TypeAdapter(Latency), storage.get(FILE, SMALL_OBJECT))
    except ValueError as error:
        raise CorruptionError(
            f"{storage.location(FILE)}: {error}; delete it and run the same job again, which "
            "measures it anew"
        ) from None


def measure_and_write(storage: Storage, networks: Mapping[str, TimedNetwork]) -> dict[str, float]:
    """Measure each network, once for each shape, and write `latency.json`; returns its `ms`."""
    by_name = {network.name: network for network in networks.values()}
    # Random pixels: the time does not depend on what an image shows.
    draw = torch.Generator().manual_seed(0)
    calls: dict[str, Callable[[], object]] = {}
    for name, network in by_name.items():
        size = network.image_size
        calls[name] = functools.partial(
            network.answer, torch.rand(1, 3, size, size, generator=draw)
        )
    with torch.inference_mode():
        timed = time_on_one_core(calls)
    ms: dict[str, float] = {key: timed["ms"][network.name] for key, network in networks.items()}
    storage.put(FILE, canonical({"schema": 1, **timed, "ms": ms}))
    return ms


def cached_or_measured(storage: Storage, networks: Mapping[str, TimedNetwork]) -> dict[str, float]:
    """Milliseconds of each network by key, from `latency.json` or measured now.

    This `latency.json` is keyed by the names of the networks. Its figures are used if this kind of
    machine measured all these shapes, so a table written again from the same results stays the
    same.
    """
    by_name = {network.name: network for network in networks.values()}
    known = read(storage)
    # Figures of two machines in one table would compare machines, so all are measured again.
    fits = known.machine == processor_name() and by_name.keys() <= known.ms.keys()
    ms = known.ms if fits else measure_and_write(storage, by_name)
    return {key: ms[network.name] for key, network in networks.items()}
