"""The manifest's sections about training and scoring, as checked dataclasses."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from dfkd.config.paths import BACKBONE, MINIATURE
from dfkd.config.synthesis import TeacherConfig
from dfkd.errors import ManifestError
from dfkd.utils.types import (
    CHECKED,
    Count,
    Name,
    Natural,
    Positive,
    Precision,
    Seed,
    Several,
    require_unique,
)

Texts = Literal["template", "styles"]
"""Texts that the teacher compares images with: the class prompt, or a mean over styles."""
Augmentation = Literal[
    "flip", "crop", "affine", "turn", "colour", "grey", "invert", "noise", "blur", "erase"
]
Average = Literal["images", "classes"]
Classifier = Literal["zero-shot", "text-only"]
Model = Literal["teacher", "text-only", "student"]
"""Models that can be scored, in the order of the tables. `teacher` is the labeller, zero-shot."""


MOMENTUM = 0.9
"""Momentum of SGD, from A.2 of the paper."""
WEIGHT_DECAY, WEIGHT_DECAY_FROM_RANDOM = 5e-4, 2e-3
"""Weight decay of SGD: the usual one for ResNets, and one for students that start from random
weights. The paper names none. `manifests/studies/recipe` chose both: with less, a student from
random weights knows other domains less well; from trained weights the two are equally good."""


def _one(value: object) -> object:
    """A list of one from a single section."""
    return [value] if isinstance(value, dict) else value


def weights_file(weights: str) -> Path | None:
    """The file that `weights` names: the bundled one or a path; None if it is a library's name."""
    if weights == MINIATURE:
        return BACKBONE
    return Path(weights) if "/" in weights or "." in weights else None


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Distillation:
    """L1 loss between the distances of student and teacher (equations 4-5), or a mean squared error
    between their embeddings; in two phases, the head on a frozen backbone, then everything (A.2).
    """

    warmup_epochs: Natural = 150
    """Epochs in which only the head is trained; the backbone is frozen in evaluation mode."""
    epochs: Count = 150
    """Epochs in which all layers are trained, at `finetune_factor` times the learning rate."""
    learning_rate: Positive = 0.1
    """Learning rate of the warm-up; fine-tuning multiplies it by `finetune_factor`."""
    finetune_factor: Positive = 0.1
    """Factor on `learning_rate` in the epochs after the warm-up."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The paper's SGD with momentum and a weight decay of 0.0005, from random weights of 0.002; or
    AdamW without any."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Schedule of the learning rate; a cosine falls to zero within each phase. The paper names
    none; the study manifests/studies/recipe compares the two."""
    augmentation: tuple[Augmentation, ...] = ("flip", "crop")
    """Random changes of each image; teacher and student see the same view. Without any, the targets
    are those that the shards store, literally those of equation 4, and no teacher runs."""
    precision: Precision = "float32"
    """Precision of the student's layers in training and of the gradients that ranks exchange. A
    device without bfloat16 instructions computes the layers in float32."""
    student: Annotated[Several[Name], Field(min_length=1)] = ("resnet18",)
    """A torchvision ResNet (resnet18, resnet50, ...) or `timm:NAME`, or a list of them. Methods are
    compared by the first one, which is trained on the images of each method. The others are
    trained on those of the last method, and all of them are candidates to ship."""
    weights: Annotated[Several[Name], Field(min_length=1)] = ("IMAGENET1K_V1",)
    """Initial weights of the backbone: torchvision's name of the weights (read from the cache),
    `pretrained` for a model of timm, `miniature` for the bundled ones of `timm:test_resnet`, a
    safetensors file, or `none` for random weights, which allow no warm-up. One for all students, or
    a list with one for each."""
    seeds: Annotated[Several[Seed], Field(min_length=1)] = (0,)
    """Seeds of the students. One student is trained for each seed, and one text-only classifier if
    `evaluation.models` contains it."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Images of one step, summed over all ranks; at most the images of a version."""
    target: Literal["distances", "embedding", "both"] = "distances"
    """What the student learns: the labeller's distances to the class texts, its image embedding, or
    the embedding with both losses. The classes of the latter two can be replaced after the training
    (`dfkd evaluate --classes`, `dfkd labels`); with `both` and `texts: styles` they were as
    accurate on their own classes in `manifests/studies/better`."""
    labeller: Annotated[
        Several[Literal["teacher"] | TeacherConfig], BeforeValidator(_one), Field(min_length=1)
    ] = ("teacher",)
    """The model that says what an image shows: the student learns to answer like it. It also gives
    the zero-shot results and the texts of other classes. `teacher`, or another open_clip model with
    the keys of the section `teacher`, which need not know the generator: `{model:
    PE-Core-L-14-336, weights: meta}`. Of a list the student learns the mean of their standardised
    distances. With a far weaker partner it became worse (`manifests/studies/claims.md`); partners
    that are as good have not been tried."""
    texts: Texts = "template"
    """Texts that the labeller compares images with: the class prompt, or each class' mean over
    its class prompt and `prompts.styles` (an ensemble). Stored distances are to the class prompt
    alone and are not used with styles."""
    standardise: bool | tuple[float, Positive] = True
    """Rescale labels to mean 0 and standard deviation 1, because a CLIP's distances differ too
    little for the usual learning rates. The teacher's are rescaled by its distances to the class
    prompts, also with `texts: styles`. `[mean, std]` rescales distances to these, false leaves
    them as they are. The finished student returns the labeller's distances in any case."""
    workers: Annotated[Several[Count], Field(min_length=1, max_length=2)] = (1,)
    """DDP ranks of a student: a number, or `[least, most]` for a number that follows the cluster's
    free resources. Students of one rank train side by side, as many as there are GPUs or CPUs;
    others train one after the other. Raise it if there are more GPUs than students."""
    checkpoint_epochs: Count = 1
    """Epochs between checkpoints. A checkpoint holds weights and the optimizer's moments, so it is
    twice (sgd) or three times (adamw) as large as the student."""

    @property
    def architecture(self) -> str:
        """The first of `student`; settings from `of_student` have only this one."""
        return self.student[0]

    @property
    def initial_weights(self) -> str:
        """The weights that it starts from."""
        return self.weights[0]

    def of_student(self, architecture: str) -> "Distillation":
        """The same settings with only one of the students."""
        place = self.student.index(architecture) if len(self.weights) > 1 else 0
        return dataclasses.replace(self, student=(architecture,), weights=(self.weights[place],))

    @property
    def weight_decay(self) -> float:
        """The weight decay of the optimizer."""
        if self.optimizer != "sgd":
            return 0.0
        return WEIGHT_DECAY_FROM_RANDOM if self.initial_weights == "none" else WEIGHT_DECAY

    def __post_init__(self) -> None:
        require_unique("distillation.seeds", self.seeds)
        require_unique("distillation.augmentation", self.augmentation)
        require_unique("distillation.student", self.student)
        require_unique("distillation.labeller", self.labeller)
        if len(self.weights) not in (1, len(self.student)):
            raise ManifestError(
                "distillation.weights",
                f"must be one for all of distillation.student, or {len(self.student)}",
                self.weights,
                "name as many as there are students, in their order",
            )
        # Each check below is about a pair of keys, which the types of single fields cannot express.
        if self.warmup_epochs and "none" in self.weights:
            raise ManifestError(
                "distillation.warmup_epochs",
                "must be 0 with distillation.weights=none: a random backbone has nothing to freeze",
                self.warmup_epochs,
                "set it to 0, or name the weights that the backbone starts from",
            )
        if self.embeds and len(self.labeller) > 1:
            raise ManifestError(
                "distillation.labeller",
                f"must be one model with distillation.target={self.target}: the embeddings of "
                "several have no common space",
                [each if isinstance(each, str) else each.model for each in self.labeller],
                "name one, or set distillation.target=distances",
            )
        if self.embeds and self.standardise is not True:
            raise ManifestError(
                "distillation.standardise",
                f"must be true with distillation.target={self.target}, which always rescales",
                self.standardise,
                "leave it out",
            )
        least, most = self.rank_limits
        if least > most:
            raise ManifestError(
                "distillation.workers", "must be [least, most]", self.workers, "swap the two"
            )
        # Batch norm in training needs two images on each rank.
        if self.batch_size < 2 * most:
            raise ManifestError(
                "distillation.batch_size",
                f"must be 2 or more for each of the {most} ranks of distillation.workers",
                self.batch_size,
                "raise it or lower distillation.workers",
            )

    @property
    def stored_labels(self) -> bool:
        """Whether the shards hold the targets: an embedding, or distances to the class prompt, both
        the teacher's of the plain image."""
        stored = self.embeds or self.texts == "template"
        return not self.augmentation and stored and self.labelled_by_teacher

    @property
    def labelled_by_teacher(self) -> bool:
        """Whether the teacher is the only labeller, so that a version tells of its labels."""
        return self.labeller == ("teacher",)

    @property
    def embeds(self) -> bool:
        """Whether the student's output is an embedding, so that its classes can be replaced."""
        return self.target != "distances"

    @property
    def rank_limits(self) -> tuple[int, int]:
        """The minimal and the maximal number of DDP ranks."""
        return self.workers[0], self.workers[-1]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Candidates:
    """Models that could be shipped beside the students: CLIP image towers as they are.

    Each candidate is exported, and scored and timed as exported.
    """

    towers: tuple[Literal["labeller", "teacher"] | TeacherConfig, ...] = ("labeller",)
    """`labeller` (each of `distillation.labeller`), `teacher`, and other open_clip models with the
    keys of the section `teacher`: `{model: MobileCLIP2-S0, weights: dfndr2b}`. Empty: students
    only."""
    classifiers: Annotated[Several[Classifier], Field(min_length=1)] = ("zero-shot",)
    """What a tower compares an image with: the embeddings of the class prompts (`zero-shot`), or
    the vectors of a linear classifier that is trained only on texts (`text-only`,
    `dfkd.distillation.text_only`), one for each of `distillation.seeds`."""
    styles: Count = 80
    """K, the number of style words that the text-only classifier learns; its other settings are
    those of PromptStyler."""

    def __post_init__(self) -> None:
        require_unique("candidates.classifiers", self.classifiers)
        require_unique("candidates.towers", self.towers)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Evaluation:
    """Accuracy per domain and class on data that no other stage uses."""

    data: Name = "bundled"
    """A folder in a layout of `dfkd.evaluation.layouts`, a list file (path, domain, class),
    `bundled`, or `none` if there are no labelled images: then nothing is scored."""
    domains: Several[Name] = ()
    """Domains that are scored, in the order of the tables; empty for all domains, sorted by name.
    """
    aliases: dict[Name, Name] = dataclasses.field(default_factory=dict)
    """The data's names of classes whose folders are named differently: `{plane: aeroplane}`. Other
    people's data need it, because the name of a folder is often a poor prompt."""
    average: Average = "images"
    """Accuracy on a domain: the mean over images, or the mean of the classes' accuracies (VisDA).
    """
    models: Several[Model] = ("teacher", "student")
    """Models that are scored. `teacher` is the labeller, which classifies zero-shot; `text-only` is
    a classifier on its tower that is trained without images (`candidates.styles`)."""

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

    @property
    def scored(self) -> tuple[Model, ...]:
        """The models that are scored: none of them without labelled images."""
        return () if self.data == "none" else self.models
