"""How models are trained: sections of the manifest, as checked dataclasses."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from dfkd.errors import ManifestError
from dfkd.utils.types import (
    CHECKED,
    Count,
    Name,
    Natural,
    Positive,
    Precision,
    Several,
    require_unique,
)

Start = Literal["student", "library", "scratch"]
"""What few-shot training starts from."""
Texts = Literal["template", "styles"]
"""What the teacher compares images with: the class prompt, or a mean over styles."""
Augmentation = Literal[
    "flip", "crop", "affine", "colour", "grey", "invert", "noise", "blur", "erase"
]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Training:
    """Two phases: the classifier on a frozen backbone, then everything (A.2)."""

    warmup_epochs: Natural = 150
    """Epochs that train the head alone, on a backbone that is frozen in evaluation mode."""
    epochs: Count = 150
    """Epochs with everything trained, at `finetune_factor` times the rate."""
    learning_rate: Positive = 0.1
    """Of the warm-up; fine-tuning multiplies it by `finetune_factor`."""
    finetune_factor: Positive = 0.1
    """Times `learning_rate`, once everything is trained."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The paper's SGD with momentum, or AdamW."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Of the rate; a cosine runs to zero within each phase. The paper names none; the study
    manifests/studies/recipe compares the two."""
    augmentation: tuple[Augmentation, ...] = ("flip", "crop")
    """Random changes of each image; teacher and student see the same view."""
    precision: Precision = "float32"
    """Of the student's layers in training, in float32 on a device that does not multiply bfloat16,
    and of the gradients that ranks send each other."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Distillation(Training):
    """L1 on teacher distances (equations 4-5)."""

    student: Name = "resnet18"
    """A torchvision ResNet (resnet18, resnet50, ...) or `timm:NAME`."""
    weights: Name = "IMAGENET1K_V1"
    """What the backbone starts from: torchvision's name of the weights (read from the cache),
    `pretrained` for a model of timm, a safetensors file, or `none` for random weights, which allow
    no warm-up."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """`small`: one 3 x 3 convolution instead of the stride-4 stem. Whoever trains on images below
    100 px (CIFAR's) needs it, because the large stem leaves them a map of a few pixels."""
    seeds: Annotated[Several[Natural], Field(min_length=1)] = (0,)
    """One student is trained for each, and one text-only classifier if `evaluation.models` has it.
    """
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Images of one step over all ranks together; no more than a version has."""
    labels: Literal["live", "stored"] = "live"
    """Teacher on the augmented view, or the distances stored in the shard (the letter of Eq 4)."""
    texts: Texts = "template"
    """What the teacher compares images with: the class prompt, or an ensemble, each class' mean
    over `prompts.styles`. Stored distances are to the class prompt."""
    standardise: bool = True
    """Train on (distance - mean) / std of the labels, so that learning rates suit the small
    differences between a CLIP's distances; the student still gives distances."""
    workers: Annotated[Several[Count], Field(min_length=1, max_length=2)] = (1,)
    """DDP ranks of a student: a number, or `[least, most]`, as many of them as the cluster has room
    for while it changes. Students are trained one after the other, in a study side by side. Whoever
    has several GPUs, or spot nodes, raises it."""
    loader_workers: Natural = 0
    """Threads a rank that decode shards; 0 decodes in the one thread that reads ahead. Whoever has
    224 px images and a fast GPU raises it, because one thread then keeps the GPU waiting."""
    checkpoint_epochs: Count = 1
    """Epochs between checkpoints (of weights and momentum: twice the student's size)."""

    def __post_init__(self) -> None:
        require_unique("distillation.seeds", self.seeds)
        require_unique("distillation.augmentation", self.augmentation)
        if self.warmup_epochs and self.weights == "none":
            raise ManifestError(
                "distillation.warmup_epochs",
                "must be 0 with distillation.weights=none: a random backbone has nothing to freeze",
                self.warmup_epochs,
                "set it to 0, or name the weights that the backbone starts from",
            )
        if self.labels == "stored" and self.augmentation:
            raise ManifestError(
                "distillation.labels",
                "stored labels belong to the plain image and allow no augmentation",
                self.labels,
                "set distillation.labels=live or distillation.augmentation=[]",
            )
        if self.labels == "stored" and self.texts != "template":
            raise ManifestError(
                "distillation.texts",
                "must be template with stored labels, which are distances to it",
                self.texts,
                "set distillation.labels=live",
            )
        least, most = self.ranks
        if least > most:
            raise ManifestError(
                "distillation.workers", "must be [least, most]", self.workers, "swap the two"
            )
        if self.batch_size < 2 * most:
            raise ManifestError(
                "distillation.batch_size",
                f"must be 2 or more for each of the {most} ranks of distillation.workers",
                self.batch_size,
                "raise it or lower distillation.workers",
            )

    @property
    def ranks(self) -> tuple[int, int]:
        """The least and the most DDP ranks."""
        return self.workers[0], self.workers[-1]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TextOnly:
    """A linear classifier on a frozen CLIP image tower, trained on texts alone
    (`dfkd.distillation.text_only`).

    All else is as PromptStyler has it. One is trained for each of `distillation.seeds`.
    """

    model: str = ""
    """The tower, named as in `teacher.model`; empty is the teacher with its weights."""
    weights: str = ""
    """Of that tower, named as in `teacher.weights`."""
    styles: Count = 80
    """K, the style words that are learned."""

    def __post_init__(self) -> None:
        if bool(self.model) != bool(self.weights):
            raise ManifestError(
                "text_only.weights",
                "model and weights of the tower must be given together",
                [self.model, self.weights],
                "name both, or neither to take the teacher's",
            )


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class FewShot:
    """Cross-entropy on k labelled images a class of one domain, tested on its rest (section 4.3).

    The paper gives shots, five runs and ImageNet weights as the rival, and no other setting. The
    rates are those of AdamW and fall to zero along a cosine. What they and the epochs were chosen
    by is in manifests/studies/few-shot.
    """

    domains: Several[Name] = ()
    """Of `evaluation.data`; empty is all of them."""
    shots: Annotated[Several[Count], Field(min_length=1)] = (1, 2, 4, 8, 16)
    """k, the training images of each class; of a class with too few, all but one."""
    seeds: Annotated[Several[Natural], Field(min_length=1)] = (0, 1, 2, 3, 4)
    """Of the draw, fresh weights and the views. Seed n takes the student of
    `distillation.seeds[n % len(seeds)]`. Whoever wants a first look takes one seed instead of five.
    """
    starts: Annotated[Several[Start], Field(min_length=1)] = ("student", "library", "scratch")
    """What is fine-tuned: all of them have the architecture of `distillation.student`."""
    library: Name = "IMAGENET1K_V1"
    """Weights of that start: the library's name (`IMAGENET1K_V1`, `pretrained`) or a file. Whoever
    has a student of timm needs it, because timm knows only `pretrained`."""
    epochs: Count = 20
    """Of every start. Like the two rates, for whoever has other images than the miniature's icons,
    by which the defaults were chosen."""
    learning_rate: Positive = 0.0001
    """Of weights that have learned something: the student, and the backbone of `library`."""
    fresh_rate: Positive = 0.001
    """Of random weights: all of `scratch`, and the head of `library`."""

    def __post_init__(self) -> None:
        for key in ("domains", "shots", "seeds", "starts"):
            require_unique(f"fewshot.{key}", getattr(self, key))
