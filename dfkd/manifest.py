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

from dfkd.artifacts import CACHE
from dfkd.errors import ManifestError
from dfkd.fields import (
    CHECKED,
    Count,
    Fraction,
    Name,
    Natural,
    NonNegative,
    Positive,
    Precision,
    Several,
    require_slots,
    require_unique,
)
from dfkd.inversion.settings import Inversion
from dfkd.methods import Method, PromptMethod, Way, compared, prompt_method, way_of
from dfkd.presets import PRESETS
from dfkd.training import Distillation, FewShot
from dfkd.yaml import load

Average = Literal["images", "classes"]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Storage:
    """Where a run keeps what it makes."""

    root: Name
    """A directory or `s3://bucket/prefix`. On a cluster of several nodes a directory is an absolute
    path that all of them share."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Teacher:
    """The frozen vision-language model (open_clip)."""

    model: Name = "ViT-B-32-quickgelu"
    """An open_clip architecture, the path of a model configuration, or `miniature`."""
    weights: Name = "openai"
    """An open_clip tag, a file (OpenAI archive, state dict, safetensors), a folder, `miniature`.

    What a tag names is read from the cache."""
    template: Name = "A {class}"
    """The vanilla class prompt, which is also the one that labels and zero-shot rows use."""

    def __post_init__(self) -> None:
        require_slots("teacher.template", self.template, "{class}")


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Generator:
    """The frozen VQGAN decoder (taming-transformers)."""

    config: Name = "miniature"
    """The official `model.yaml`, `miniature`, or a name that is read from the cache:
    `vqgan-imagenet-f16-1024`, `vqgan-imagenet-f16-16384`."""
    weights: Name = "miniature"
    """The official `.ckpt`, a safetensors file with the same keys, or a name as for `config`."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Guard:
    """Class consistency of random and contrastive prompts; all off is the paper's exact form."""

    weight: NonNegative = 0.0
    """Weight of the cross-entropy of a contrastive prompt against the class texts."""
    temperature: Positive = 0.1
    """Temperature of that cross-entropy over cosine similarities."""
    attempts: Natural = 0
    """New draws of a prompt that is nearest to a foreign class, before it falls back to vanilla."""
    margin: NonNegative = 0.0
    """How much nearer (in cosine) its own class must be than any other for a prompt to pass."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Contrastive:
    """Equation 12 and the variants that the paper ablates."""

    updates: Count = 100
    """At the least: with `similarity` up to ten times as many, until a batch meets it."""
    learning_rate: Positive = 0.1
    batch_size: Annotated[int, Field(ge=2)] = 256
    bank: Natural = 2048
    """Negatives drawn from the memory bank of earlier prompts; 0 uses the batch alone."""
    memory: Count = 16384
    """Prompts that the bank remembers, of all classes; the oldest leave first."""
    parallel: Count = 1
    """Parts (`shard_size` prompts of each class) that are made side by side. A prompt knows those
    of its own part and of all before, but not of the `parallel` - 1 parts right before."""
    temperature: Positive = 0.1
    """The paper names no value."""
    positive: Literal["shuffle", "substitute"] = "shuffle"
    """How the letters of the template's frozen words are disturbed in the positive view."""
    negatives: Literal["instance", "intra-class"] = "instance"
    initialisation: Literal["random", "mix"] = "random"
    similarity: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Most that the mean cosine over pairs of prompts of one class may be: a run whose prompts miss
    it is refused once they are made, before any image is; 1 accepts all."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Prompts:
    """How each image gets its own target text embedding."""

    method: Annotated[Several[PromptMethod], Field(min_length=1)] = ("contrastive",)
    """One method, or a list that `jobs/pipeline.py` compares."""
    template: Name = "{class} in the style of {style}"
    styles: Literal["paper", "miniature"] | tuple[Name, ...] = "paper"
    """The style dictionary of mix: a named one or a list."""
    alpha: Positive = 1.0
    """Beta(alpha, alpha) of mix."""
    scale: NonNegative = 10.0
    """e of random: pseudo-word spread in standard deviations of the token table."""
    guard: Guard = Guard()
    contrastive: Contrastive = Contrastive()

    def __post_init__(self) -> None:
        require_slots("prompts.template", self.template, "{class}", "{style}")
        require_unique("prompts.method", self.method)
        if not isinstance(self.styles, str):
            require_unique("prompts.styles", self.styles)
        few = not isinstance(self.styles, str) and len(self.styles) < 2
        if few and ("mix" in self.method or self.contrastive.initialisation == "mix"):
            raise ManifestError(
                "prompts.styles", "mix needs two styles or more", self.styles, "add styles"
            )


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Amortised:
    """A network that guesses where latents start, trained on the run's own prompts."""

    training: NonNegative = 0.0
    """Its image-steps for each image of the run, as a share of `steps`; 0 is no network."""
    refinement: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Steps that an image itself takes then, as a share of `steps`."""
    batch_size: Count = 32
    learning_rate: Positive = 0.002
    width: Count = 512
    """Numbers in each of its two hidden layers."""

    def __post_init__(self) -> None:
        if not self.training and self.refinement < 1:
            raise ManifestError(
                "synthesis.amortised.refinement",
                "must be 1 without training",
                self.refinement,
                "set amortised.training, or lower synthesis.steps",
            )


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Synthesis:
    """Latent optimisation (equations 1-3), or one of the methods in `inversion`."""

    method: Annotated[Several[Way], Field(min_length=1)] = ("latent",)
    """`latent` optimises VQGAN latents towards `prompts`; the others have vanilla prompts, and of
    this section they use the sizes, `precision` and `format`. A list is compared."""
    images_per_class: Count = 3000
    shard_size: Count = 100
    """Images a shard, and so the work one task does and can lose; where images depend on each other
    (`inversion`, L_bn), a worker makes those of every class at once."""
    image_size: Count = 224
    """Pixels a side; a multiple of the generator's down-sampling factor."""
    steps: Count = 500
    batch_size: Natural = 8
    """Images optimised at once. 0 finds what a GPU's memory holds, from `shard_size` downwards, and
    is 8 on a CPU. A batch that memory has no room for is halved in any case."""
    optimizer: Literal["adam", "adamw", "normalised"] = "adam"
    """`normalised` moves each latent down its gradient; the root mean square of its change is
    `learning_rate`."""
    learning_rate: Positive = 0.15
    pace: Annotated[float, Field(ge=1)] = 1.0
    """An image takes `steps` / `pace` steps at `pace` times the rate: as far, in longer strides."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    weight_decay: NonNegative = 0.0
    views: Natural = 0
    """Augmented views that the teacher sees at each step; 0 shows it the plain image."""
    view_noise: NonNegative = 0.0
    """Standard deviation of the pixel noise that is added to a view."""
    quantise: bool = True
    """Decode the nearest codes, straight-through, instead of the continuous latent. The paper names
    neither; in the miniature false is 5.1 points better (manifests/studies/latent)."""
    initialisation: Literal["codes", "normal"] = "codes"
    candidates: Natural = 0
    """Latents that are drawn so and shown to the teacher once: an image starts from the nearest to
    its prompt in a quarter of them that is its own. 0 draws each image a latent unseen."""
    amortised: Amortised = Amortised()
    """Takes the place of `initialisation` and `candidates` where it is trained."""
    keep: Literal["best", "last"] = "best"
    patience: Natural = 0
    """Steps without a better loss after which an image stops; 0 never stops early."""
    precision: Precision = "float32"
    """Of the networks; a device that does not multiply bfloat16 works in float32. Labels and
    distances are float32."""
    compile: bool = False
    """Compile the step by torch.compile (on a CPU that needs a C++ compiler): the same images up to
    rounding, faster on a GPU after minutes of waiting."""
    format: Literal["png", "jpg"] = "png"
    batch_norm_weight: Annotated[Several[NonNegative], Field(min_length=1, max_length=2)] = (0.0,)
    """Of DeepInversion's L_bn, which `latent` adds to each image's distance; images then depend on
    those that share their batch. `[0, w]` compares: the methods with it are called `...-bn`."""

    def __post_init__(self) -> None:
        require_unique("synthesis.method", self.method)
        if len(self.batch_norm_weight) == 2 and 0 not in self.batch_norm_weight:
            raise ManifestError(
                "synthesis.batch_norm_weight",
                "two weights are 0 and another",
                list(self.batch_norm_weight),
                "replace one by 0",
            )
        require_unique("synthesis.batch_norm_weight", self.batch_norm_weight)
        if not self.batch_size and any(self.batch_norm_weight):
            raise ManifestError(
                "synthesis.batch_size",
                "must be given where images depend on those of their batch (batch_norm_weight)",
                self.batch_size,
                "set it to what every worker's memory holds",
            )
        if self.optimizer == "adam" and self.weight_decay:
            raise ManifestError(
                "synthesis.weight_decay",
                "must be 0 with optimizer adam",
                self.weight_decay,
                "set synthesis.optimizer=adamw or the decay to 0",
            )


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Evaluation:
    """Accuracy per domain and class on data that no stage has seen."""

    data: Name = "bundled"
    """A folder in a layout of `dfkd.layouts`, a list file (path, domain, class), or `bundled`."""
    domains: Several[Name] = ()
    """The domains that are scored, in the order in which they are shown; empty is all, by name."""
    aliases: dict[Name, Name] = dataclasses.field(default_factory=dict)
    """What the data call a class, where that is not its name here: `{plane: aeroplane}`."""
    average: Average = "images"
    """Accuracy on a domain: the share of images, or the mean of that over classes (VisDA)."""
    models: Several[Literal["teacher", "student"]] = ("teacher", "student")
    batch_size: Count = 64

    def __post_init__(self) -> None:
        require_unique("evaluation.domains", self.domains)
        require_unique("evaluation.aliases", tuple(self.aliases.values()))
        require_unique("evaluation.models", self.models)
        if not self.models:
            raise ManifestError(
                "evaluation.models",
                "must name a model",
                self.models,
                "use teacher, student or both",
            )


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Cluster:
    """How many workers synthesise, and how stubbornly."""

    workers: Natural = 0
    """Synthesis actors at the most; 0 is as many as fit, also of nodes that join later.

    An autoscaler is asked for as many; with 0 for one for each task, at most a few hundred, so that
    its own maximum is the cap on cost."""
    cpus_per_worker: Positive = 1.0
    gpus_per_worker: NonNegative | None = None
    """None is one where a node has any when the stage begins, else none: give 1 where nodes with
    GPUs are still to come."""
    attempts: Count = 3
    """Tries of a task before it is quarantined."""
    task_timeout: NonNegative = 3600.0
    """Seconds after which a worker that has not finished its task counts as hung; 0 is never.

    A part of prompts (one shard of every class) is one task: raise it for a thousand classes."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Regeneration:
    """What `jobs/regenerate.py` makes anew, what it accepts, and what `jobs/gc.py` leaves."""

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
    keep: Count = 3
    """Versions that jobs/gc.py keeps, the current one included."""
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
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    storage: Storage
    cache: Name = CACHE
    """The folder that `jobs/fetch.py` fills with published weights; on a cluster each node needs
    one. Results do not depend on it."""
    seed: Natural = 0
    salt: Natural = 0
    """Another data set from the same settings; `jobs/regenerate.py` counts it up."""
    teacher: Teacher = Teacher()
    generator: Generator = Generator()
    prompts: Prompts = Prompts()
    synthesis: Synthesis = Synthesis()
    inversion: Inversion = Inversion()
    distillation: Distillation = Distillation()
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
        if "://" in self.cache:
            raise ManifestError("cache", "must be a folder of this machine", self.cache, "name one")
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

        Both may name a preset. Keys in the file override its `preset`; an override `preset=NAME`
        overrides the file, and each override those before it.

        Raises:
            ManifestError: the file or an override breaks a rule, which the text names.
        """
        return load(cls, path, overrides, PRESETS)

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods that are compared: the rows of the results, one version of images each."""
        synthesis = self.synthesis
        return compared(synthesis.method, self.prompts.method, synthesis.batch_norm_weight)

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
