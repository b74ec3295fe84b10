"""The settings of few-shot training, which options of `dfkd fewshot` give."""

import argparse
import dataclasses
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from dfkd.utils.types import CHECKED, Count, Name, Natural, Positive, Several, require_unique
from dfkd.utils.yaml import check

Start = Literal["student", "library", "scratch"]
"""Initial weights of few-shot training."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class FewShot:
    """Cross-entropy on k labelled images per class of a domain, tested on the others (section 4.3).

    The paper states the shots, five runs and ImageNet weights as the baseline, but no other
    setting. The optimizer is AdamW, whose learning rates fall to zero along a cosine. The study
    manifests/studies/few-shot shows how the rate and the epochs were selected.
    """

    domains: Several[Name] = ()
    """Domains of `evaluation.data`; empty for all."""
    shots: Annotated[Several[Count], Field(min_length=1)] = (1, 2, 4, 8, 16)
    """k, the training images per class; a class with too few images keeps one for the test."""
    seeds: Annotated[Several[Natural], Field(min_length=1)] = (0, 1, 2, 3, 4)
    """Seeds of the split, the new weights and the views. Seed n uses the student of
    `distillation.seeds[n % len(seeds)]`. One seed instead of five is enough for a first look."""
    starts: Annotated[Several[Start], Field(min_length=1)] = ("student", "library", "scratch")
    """Initial weights that are compared; all have the architecture of `distillation.student`. Those
    of `library` are `distillation.weights`, from which the student started."""
    epochs: Count = 20
    """Epochs for every start. The defaults of the epochs and of the learning rate were selected on
    the miniature's icons, so other images may need other values."""
    learning_rate: Positive = 0.0001
    """Learning rate of trained weights: the student, and the backbone of `library`. Random weights
    (all of `scratch`, and the head of `library`) learn at ten times this rate."""

    def __post_init__(self) -> None:
        for key in ("domains", "shots", "seeds", "starts"):
            require_unique(f"--{key}", getattr(self, key))


def read_options(options: argparse.Namespace) -> FewShot:
    """The settings that options give; one that was not given has its default.

    Raises:
        ManifestError: an option breaks a rule, which the text names.
    """
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(FewShot)}
    return check(FewShot, {name: value for name, value in given.items() if value is not None})
