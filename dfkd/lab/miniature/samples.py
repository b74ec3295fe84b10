"""Images of the exported diffusion model: what the teacher names of them, and a picture of some."""

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from dfkd.config.paths import MINIATURE
from dfkd.config.pipelines import PIPELINES
from dfkd.config.synthesis import GeneratorConfig
from dfkd.lab.miniature.evaluation_set import OFFICIAL
from dfkd.lab.miniature.looks.fields import SIZE
from dfkd.lab.miniature.looks.look import vocabulary
from dfkd.lab.miniature.training.diffusion import DiffusionTrainer
from dfkd.models.generators.diffusion import Diffusion
from dfkd.models.generators.generator import Condition
from dfkd.models.teacher import Teacher
from dfkd.utils.pixels import to_bytes

_OWN = PIPELINES[MINIATURE]
"""Sampling steps and guidance scale of the samples."""
_COUNT = 8
"""Images of each class without and with styles."""


@torch.no_grad()
def scores(trainer: DiffusionTrainer, folder: Path) -> dict[str, Any]:
    """Scores of the model that was exported to `folder`; writes `samples.png` there.

    Returns:
        Plain values. `teacher` has the share, 0-1, of images whose class the teacher names: of
        the `plain` class prompts, and of `styled` ones.
    """
    teacher, model = trainer.teacher, _exported(folder)
    texts = teacher.encode_text([f"A {name}" for name in OFFICIAL])
    words = [word for word in vocabulary() if not word.endswith(" ground")]
    styles = [words[i * len(words) // _COUNT] for i in range(_COUNT)]
    named: dict[str, list[float]] = {"plain": [], "styled": []}
    strips = []
    for i, name in enumerate(OFFICIAL):
        images = {
            "plain": _sample(model, teacher, [f"A {name}"] * _COUNT),
            "styled": _sample(model, teacher, [f"{name} in the style of {s}" for s in styles]),
        }
        for kind, made in images.items():
            nearest = (teacher.encode_image(made) @ texts.T).argmax(1)
            named[kind].append(float((nearest == i).float().mean()))
        strips.append(strip(torch.cat(list(images.values()))))
    Image.fromarray(np.concatenate(strips)).save(folder / "samples.png", optimize=True)
    return {
        "parameters": sum(weight.numel() for weight in trainer.network.parameters()),
        "names": sorted({row.concept for row in trainer.batches.rows}),
        **trainer.scores(),
        "images": 2 * _COUNT * len(OFFICIAL),
        "sampling_steps": _OWN.steps,
        "guidance": _OWN.guidance,
        "teacher": {kind: round(statistics.fmean(shares), 4) for kind, shares in named.items()},
    }


def _exported(folder: Path) -> Diffusion:
    """The model in diffusers' layout, with the half-precision values that its users get."""
    config = GeneratorConfig(kind="diffusers", weights=str(folder), guidance=_OWN.guidance)
    return Diffusion.load(config, torch.device("cpu"), steps=_OWN.steps)


def _sample(model: Diffusion, teacher: Teacher, prompts: list[str]) -> Tensor:
    """An image of each prompt, float32 [N, 3, 64, 64] in [0, 1]; the seeds are 0 to N - 1."""
    assert model.text is not None  # noqa: S101 - every diffusion model has one
    prompted, empty = (
        teacher.hidden_states(teacher.embed_tokens(teacher.tokenize(texts)), model.text.layers)
        for texts in (prompts, [""])
    )
    latents = model.init_latents(range(len(prompts)), SIZE, Condition(prompted, empty))
    return model.decode(latents)


def strip(images: Tensor) -> npt.NDArray[np.uint8]:
    """Images [N, 3, 64, 64] side by side, each in a grey frame: uint8 [66, 66 N, 3]."""
    framed: list[npt.NDArray[np.uint8]] = [
        np.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=210)
        for image in to_bytes(images).numpy()
    ]
    return np.concatenate(framed, axis=1)
