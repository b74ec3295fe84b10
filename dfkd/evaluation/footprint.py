"""How large the models of a run are, and how long each takes for one image on one core.

Counts of parameters follow from the manifest and stand in `results.json`. Milliseconds are
measured, so they lie apart, in `latency.json`, and nothing is ever compared with them:

    {"schema": 1, "ms": {name: median}, "batch": 1, "threads": 1, "runs", "machine"}
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor, nn

from dfkd.config.manifest import Manifest
from dfkd.distillation.text_only import load_tower
from dfkd.errors import CorruptionError
from dfkd.models.student import build
from dfkd.models.teacher import Teacher
from dfkd.storage.local import Storage
from dfkd.utils.hardware import one_core, processor
from dfkd.utils.strict_json import canonical

FILE = "latency.json"
CPU = torch.device("cpu")
FLOAT32 = 4
"""Bytes of a parameter."""


@dataclass(frozen=True)
class NetworkSize:
    """What answers an image, on the CPU."""

    name: str
    """The same for all networks of one shape."""
    parameters: int
    image_size: int
    answer: Callable[[Tensor], object]
    """Takes pixels [1, 3, S, S] float32."""


def networks(manifest: Manifest) -> dict[str, NetworkSize]:
    """The networks behind the models that are scored, by name of the model.

    Raises:
        ManifestError, WeightsError: as `Teacher.load` and `student.build`.
    """
    makers = {"teacher": teacher, "text-only": text_only, "student": student}
    return {model: makers[model](manifest) for model in manifest.evaluation.models}


def teacher(manifest: Manifest) -> NetworkSize:
    """The teacher's image tower."""
    return _tower(Teacher.load(manifest.teacher, CPU, cache=manifest.cache))


def text_only(manifest: Manifest) -> NetworkSize:
    """The image tower of the text-only classifier; its class vectors are nothing beside it."""
    return _tower(load_tower(manifest, CPU))


def _tower(tower: Teacher) -> NetworkSize:
    visual = tower.model.get_submodule("visual")
    name = f"{tower.name}, {tower.image_size} px"
    return NetworkSize(name, parameters(visual), tower.image_size, tower.encode_image)


def student(manifest: Manifest) -> NetworkSize:
    """A student of the manifest's shape; nobody has trained it, which changes neither figure."""
    config = dataclasses.replace(manifest.distillation, weights="none")
    size, classes = manifest.synthesis.image_size, len(manifest.classes)
    module = build(config, classes, size, seed=0).eval()
    name = f"{config.student}, {config.stem} stem, {size} px, {classes} classes"
    return NetworkSize(name, parameters(module), size, module)


def parameters(module: nn.Module) -> int:
    """Numbers that training can change."""
    return sum(tensor.numel() for tensor in module.parameters())


def megabytes(parameters: int) -> float:
    """Of so many parameters in float32."""
    return FLOAT32 * parameters / 1e6


class Latency(BaseModel):
    """The parts of the file that are shown; it holds more."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    ms: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    machine: str


def read(storage: Storage) -> Latency:
    """What was measured; nothing where nobody has measured.

    Raises:
        CorruptionError: `latency.json` is not what was written.
    """
    if not storage.exists(FILE):
        return Latency(ms={}, machine="")
    try:
        return Latency.model_validate_json(storage.get(FILE))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"]
        raise CorruptionError(
            f"{storage.location(FILE)}: {problem}; delete it and run the same job again, which "
            "measures it anew"
        ) from None


def write(storage: Storage, found: Mapping[str, NetworkSize]) -> dict[str, float]:
    """Measure each network, once for each shape, and write `latency.json`; returns its `ms`."""
    content = measure(found)
    storage.put(FILE, canonical(content))
    ms: dict[str, float] = content["ms"]
    return ms


def cached_or_measured(storage: Storage, found: Mapping[str, NetworkSize]) -> dict[str, float]:
    """Milliseconds by key, as this machine has measured networks of these shapes before, or now.

    In this `latency.json` they go by the names of the networks. So a table that is written again
    from the same results stays as it is.
    """
    by_name = {network.name: network for network in found.values()}
    known = read(storage)
    fits = known.machine == processor() and by_name.keys() <= known.ms.keys()
    ms = known.ms if fits else write(storage, by_name)
    return {key: ms[network.name] for key, network in found.items()}


def measure(found: Mapping[str, NetworkSize]) -> dict[str, Any]:
    """The content of `latency.json`."""
    several = {network.name: network for network in found.values()}
    draw = torch.Generator().manual_seed(0)
    pixels = {
        name: torch.rand(1, 3, network.image_size, network.image_size, generator=draw)
        for name, network in several.items()
    }

    def call(name: str) -> Callable[[], object]:
        return lambda: several[name].answer(pixels[name])

    with torch.inference_mode():
        timed = one_core({name: call(name) for name in several})
    ms = {key: timed["ms"][network.name] for key, network in found.items()}
    return {"schema": 1, **timed, "ms": ms}
