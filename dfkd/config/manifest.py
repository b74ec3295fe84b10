"""The manifest: the YAML file that fully describes a run, as checked dataclasses.

Defaults are the paper's numbers (or, where the paper is silent, what the key's docstring says).
No torch and no ray here, so that a bad manifest is refused in milliseconds.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from dfkd.config.distillation import Distillation, FewShot, TextOnly
from dfkd.config.inversion import Inversion
from dfkd.config.methods import Method, expand_methods, prompt_method, way_of
from dfkd.config.presets import PRESETS
from dfkd.config.synthesis import Prompts, Synthesis
from dfkd.errors import ManifestError
from dfkd.storage.base import split_root
from dfkd.utils.types import (
    CHECKED,
    Count,
    Fraction,
    Name,
    Natural,
    NonNegative,
    Positive,
    Several,
    require_folder,
    require_slots,
    require_unique,
)
from dfkd.utils.yaml import load

CACHE = "~/.cache/dfkd"
"""Where fetched files are kept, unless a manifest says otherwise."""

Average = Literal["images", "classes"]
Model = Literal["teacher", "text-only", "student"]
"""What can be scored, in the order in which it is shown."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StorageConfig:
    """Where a run keeps what it makes."""

    root: Name
    """A directory or `s3://bucket/prefix`. On a cluster of several nodes a directory is an absolute
    path that all of them share."""

    def __post_init__(self) -> None:
        split_root("storage.root", self.root)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TeacherConfig:
    """The frozen vision-language model (open_clip)."""

    model: Name
    """An open_clip architecture, the path of a model configuration, or `miniature`."""
    weights: Name
    """An open_clip tag, a file (OpenAI archive, state dict, safetensors), a folder, `miniature`.

    What a tag names is read from the cache."""
    template: Name = "A {class}"
    """The vanilla class prompt, which is also the one that labels and zero-shot rows use."""

    def __post_init__(self) -> None:
        require_slots("teacher.template", self.template, "{class}")


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class GeneratorConfig:
    """The frozen VQGAN decoder (taming-transformers)."""

    config: Name
    """The official `model.yaml`, `miniature`, or a name that is read from the cache:
    `vqgan-imagenet-f16-1024`, `vqgan-imagenet-f16-16384`."""
    weights: Name
    """The official `.ckpt`, a safetensors file with the same keys, or a name as for `config`."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Evaluation:
    """Accuracy per domain and class on data that no stage has seen."""

    data: Name = "bundled"
    """A folder in a layout of `dfkd.evaluation.layouts`, a list file (path, domain, class), or
    `bundled`."""
    domains: Several[Name] = ()
    """The domains that are scored, in the order in which they are shown; empty is all, by name."""
    aliases: dict[Name, Name] = dataclasses.field(default_factory=dict)
    """What the data call a class, where that is not its name here: `{plane: aeroplane}`. Whoever
    scores on data of others needs it, since a folder's name makes a poor prompt."""
    average: Average = "images"
    """Accuracy on a domain: the share of images, or the mean of that over classes (VisDA)."""
    models: Several[Model] = ("teacher", "student")
    """The teacher answers zero-shot; `text-only` is a classifier that no image has been synthesised
    for, with the settings of `text_only`."""

    def __post_init__(self) -> None:
        require_unique("evaluation.domains", self.domains)
        require_unique("evaluation.aliases", tuple(self.aliases.values()))
        require_unique("evaluation.models", self.models)
        if not self.models:
            raise ManifestError(
                "evaluation.models",
                "must name a model",
                self.models,
                "name one or more of teacher, text-only and student",
            )


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Cluster:
    """How many workers synthesise, and how stubbornly."""

    workers: Natural = 0
    """Synthesis actors at the most; 0 is as many as fit, also of nodes that join later.

    An autoscaler is asked for as many; with 0 for one for each task, at most a few hundred, so that
    its own maximum is the cap on cost."""
    cpus_per_worker: Positive = 1.0
    """What a worker reserves, and torch's threads in it. Whoever has nodes of many CPUs and no GPU
    raises it."""
    gpus_per_worker: NonNegative | None = None
    """None is one where a node has any when the stage begins, else none: give 1 where nodes with
    GPUs are still to come."""
    attempts: Count = 3
    """Tries of a task before it is quarantined. Whoever runs on nodes that are often taken away
    raises it."""
    task_timeout: NonNegative = 3600.0
    """Seconds after which a worker that has not finished its task counts as hung; 0 is never.

    A part of prompts (one shard of every class) is one task: raise it for a thousand classes."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Regeneration:
    """What `jobs/regenerate.py` makes anew, and what it accepts.

    Whoever runs that job by a schedule sets these; no manifest here does.
    """

    classes: tuple[Name, ...] = ()
    """Made anew, the rest is carried over from the current version; empty is all of them."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of the tasks of each of those classes, drawn by the salt; at least one task."""
    tolerance: Fraction = 0.02
    """Mean accuracy (0-1) that the new student may lose against that of the current version."""
    minimum_per_class: Natural = 1
    """Images that the new version must have of every class."""
    diversity_floor: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Least mean over classes of 1 - the mean cosine between the teacher's embeddings."""
    images: Natural = 0
    """Images that one call may make before it stops, to be resumed; 0 is no limit."""
    worker_seconds: Natural = 0
    """Seconds of all synthesis workers together that one call may spend; 0 is no limit."""
    lease_seconds: Annotated[int, Field(ge=3)] = 600
    """After which another call may take over from a holder that has died."""

    def __post_init__(self) -> None:
        require_unique("regeneration.classes", self.classes)

    @property
    def whole(self) -> bool:
        """Whether nothing is carried over."""
        return not self.classes and self.share == 1.0


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Manifest:
    """A whole run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    """Of the run, for its reports: letters, digits, `-` and `_`."""
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    """What the student tells apart, as prompts say it and in the order of the labels."""
    storage: StorageConfig
    teacher: TeacherConfig
    """Named together with the generator, since their images must be of one world."""
    generator: GeneratorConfig
    cache: Name = CACHE
    """The folder that `jobs/fetch.py` fills with published weights. Name another one where the home
    folder has no room for them; on a cluster each node needs one. Results do not depend on it."""
    seed: Natural = 0
    """Every random number of the run is derived from it."""
    salt: Natural = 0
    """Another data set from the same settings; `jobs/regenerate.py` counts it up."""
    prompts: Prompts = Prompts()
    synthesis: Synthesis = Synthesis()
    inversion: Inversion = Inversion()
    distillation: Distillation = Distillation()
    text_only: TextOnly = TextOnly()
    evaluation: Evaluation = Evaluation()
    fewshot: FewShot = FewShot()
    cluster: Cluster = Cluster()
    regeneration: Regeneration = Regeneration()

    def __post_init__(self) -> None:
        for name in self.classes:
            if not name.strip():
                raise ManifestError(
                    "classes", "a class name must not be empty", name, "name or remove it"
                )
            if "/" in name or name != name.strip() or not name.isprintable():
                raise ManifestError(
                    "classes",
                    "a class name is printable, without '/' and without outer spaces",
                    name,
                    "rename it",
                )
        require_unique("classes", self.classes)
        require_folder("cache", self.cache)
        for name in self.regeneration.classes:
            if name not in self.classes:
                raise ManifestError(
                    "regeneration.classes", "must be among classes", name, "name one of them"
                )
        for name in self.evaluation.aliases:
            if name not in self.classes:
                raise ManifestError(
                    "evaluation.aliases",
                    "must give classes the names of the data, and have none but classes",
                    name,
                    "write it as {class: what the data call it}",
                )

    @classmethod
    def read(cls, path: str | Path, overrides: tuple[str, ...] = ()) -> "Manifest":
        """The manifest in file `path` with `key.sub=value` overrides applied.

        The settings of a `preset` stand beneath the file's own keys, whether the file names it or
        an override replaces that name; each override stands above the file and those before it.

        Raises:
            ManifestError: the file or an override breaks a rule, which the text names.
        """
        return load(cls, path, overrides, PRESETS)

    @property
    def text_tower(self) -> TeacherConfig:
        """The tower of the text-only classifier."""
        own = self.text_only
        if not own.model:
            return self.teacher
        return dataclasses.replace(self.teacher, model=own.model, weights=own.weights)

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods that are compared: the rows of the results, one version of images each."""
        synthesis = self.synthesis
        return expand_methods(synthesis.method, self.prompts.method, synthesis.batch_norm_weight)

    @property
    def method(self) -> Method:
        """The first of `methods`; the only one, of a manifest from `with_method`."""
        return self.methods[0]

    def with_method(self, method: Method) -> "Manifest":
        """The same run with one method: what the fingerprint of a version is taken of."""
        prompt = prompt_method(method)
        weight = max(self.synthesis.batch_norm_weight) if prompt and prompt != method else 0.0
        return dataclasses.replace(
            self,
            prompts=dataclasses.replace(self.prompts, method=(prompt or "vanilla",)),
            synthesis=dataclasses.replace(
                self.synthesis, method=(way_of(method),), batch_norm_weight=(weight,)
            ),
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain lists, dicts and scalars, as a YAML or JSON file would hold them."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain
