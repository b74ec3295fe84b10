"""How well a diffusion model draws, measured while it trains: no evaluation image is used.

The images have captions of training looks and classes whose drawings are in the validation
collections. Two numbers: the share whose class the teacher names, and the Fréchet distance (Heusel
et al., 2017) of the teacher's embeddings to those of validation drawings painted as the captions
say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dfkd.config.paths import MINIATURE
from dfkd.config.pipelines import PIPELINES
from dfkd.evaluation.results import Spread
from dfkd.lab.charts import Series, curve
from dfkd.lab.miniature.captions import random_statements
from dfkd.lab.miniature.drawings import painted
from dfkd.lab.miniature.evaluation_set import OFFICIAL, by_class
from dfkd.lab.miniature.looks import LookSampler
from dfkd.lab.miniature.painting import SIZE
from dfkd.lab.miniature.pretraining import DataSplit
from dfkd.models.generators.diffusion import Diffusion
from dfkd.models.generators.generator import Condition
from dfkd.models.generators.settings import Diffusers
from dfkd.models.teacher import Teacher

GUIDANCES = (1.0, float(PIPELINES[MINIATURE].guidance))
"""Guidance scales of the images: none, which shows what the model knows, and the pipeline's."""
_PER_CLASS = 64
_AT_ONCE = 64


@dataclass(frozen=True)
class Validation:
    """The captions, and what images of them should look like."""

    prompts: list[str]
    labels: Tensor
    """The class of each prompt, an index of `OFFICIAL`: int64 [N]."""
    texts: Tensor
    """Embeddings of "A {class}" of the official classes: float32 [10, E]."""
    painted: Tensor
    """Embeddings of validation drawings painted as the prompts say: float32 [N, E]."""


def prepare(split: DataSplit, teacher: Teacher, pose: float) -> Validation:
    """Paint validation drawings of the official classes in random looks; the seeds are fixed.

    Args:
        pose: strength of the drawings' random poses, as the model learns them.
    """
    gen, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    sampler, drawings = LookSampler(gen), by_class(split.validation)
    prompts, labels, rows, looks = [], [], [], []
    for label, name in enumerate(OFFICIAL):
        of_class = drawings.get(name, [])
        for i in range(_PER_CLASS if of_class else 0):
            row = of_class[i % len(of_class)]
            look = sampler.draw(row.colour, default=0)
            rows.append(row)
            looks.append(look)
            labels.append(label)
            statements = random_statements(row, look, rng)
            prompts.append(f"a {name} in the style of {' and '.join(statements)}")
    images = painted(split.training, rows, looks, gen, pose)
    texts = teacher.encode_text([f"A {name}" for name in OFFICIAL])
    return Validation(prompts, torch.tensor(labels), texts, teacher.encode_image(images))


@torch.no_grad()
def sample(model: Diffusion, teacher: Teacher, prompts: Sequence[str]) -> Tensor:
    """An image of each prompt, float32 [N, 3, 64, 64] in [0, 1]; the seeds are 0 to N - 1."""
    assert model.text is not None  # noqa: S101 - every diffusion model has one
    layers, images = model.text.layers, []
    empty = teacher.hidden_states(teacher.embed_tokens(teacher.tokenize([""])), layers)
    for start in range(0, len(prompts), _AT_ONCE):
        texts = list(prompts[start : start + _AT_ONCE])
        states = teacher.hidden_states(teacher.embed_tokens(teacher.tokenize(texts)), layers)
        seeds = range(start, start + len(texts))
        images.append(model.decode(model.init_latents(seeds, SIZE, Condition(states, empty))))
    return torch.cat(images)


def measure(folder: Path, validation: Validation, teacher: Teacher) -> dict[str, Any]:
    """The share of named images, 0-1, and the distance, for each of `GUIDANCES`.

    Args:
        folder: the exported model.
    """
    scores: dict[str, Any] = {}
    for guidance in GUIDANCES:
        settings = Diffusers(
            weights=str(folder), guidance=guidance, steps=PIPELINES[MINIATURE].steps
        )
        model = Diffusion.load(settings, torch.device("cpu"))
        embeddings = teacher.encode_image(sample(model, teacher, validation.prompts))
        nearest = (embeddings @ validation.texts.T).argmax(1)
        scores[f"guidance {guidance:g}"] = {
            "named": round(float((nearest == validation.labels).float().mean()), 4),
            "distance": round(frechet_distance(embeddings, validation.painted), 4),
        }
    return scores


def figure(validations: Sequence[dict[str, Any]]) -> bytes:
    """The named share over the number of training images, for each guidance, as an SVG.

    Args:
        validations: what `measure` returned, with `images`.
    """
    lines = [
        Series(
            name,
            tuple(
                (each["images"], Spread(mean=each[name]["named"], std=None)) for each in validations
            ),
        )
        for name in validations[0]
        if name != "images"
    ]
    title = "Images in validation looks whose class the teacher names"
    return curve(title, "training images", "named (%)", lines, first_is_mean=False).svg


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of the means and covariances of rows [N, E]."""
    means, covariances = [], []
    for rows in (first.double(), second.double()):
        means.append(rows.mean(0))
        covariances.append(torch.cov(rows.T))
    # C1^(1/2) C2 C1^(1/2) is symmetric and has the eigenvalues of C1 C2.
    values, axes = torch.linalg.eigh(covariances[0])
    root = axes * values.clamp_min(0).sqrt() @ axes.T
    shared = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp_min(0).sqrt().sum()
    traces = covariances[0].trace() + covariances[1].trace()
    return float((means[0] - means[1]).square().sum() + traces - 2 * shared)
