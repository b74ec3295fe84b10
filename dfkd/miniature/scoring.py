"""The numbers of the model card, measured on the exported files."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file
from torch import Tensor, nn

from dfkd.miniature import generator
from dfkd.miniature import teacher as teacher_recipe
from dfkd.miniature.evaluation_set import OFFICIAL, EvaluationImage
from dfkd.miniature.looks.domains import DOMAINS, SPARSE
from dfkd.miniature.looks.look import vocabulary
from dfkd.miniature.pretraining import World, collections_of, evaluation_images, reconstruct
from dfkd.miniature.recipe import Recipe
from dfkd.utils.hardware import processor_name

Scores = dict[str, Any]
_SCALES = (1.0, 3.0, 10.0)
_PROMPTS_PER_CLASS = 64
#: A character that stands for a pseudo-word.
_PLACEHOLDER = "*"
_LIBRARIES = ("torch", "open_clip_torch", "taming-transformers", "numpy", "resvg-py", "scipy")


def data_scores(recipe: Recipe, icons: World) -> Scores:
    """Facts about the training data, and the evidence that evaluation icons are not part of it."""
    pictures, _ = evaluation_images(icons)
    return {
        "package": recipe.data.package,
        "training": {
            "collections": len(collections_of(icons.rows)),
            "icons": len(icons.rows),
            "names": len({row.concept for row in icons.rows}),
            "in_colour": sum(row.colour for row in icons.rows),
        },
        "validation": dict(sorted(collections_of(icons.validation).items())),
        "separation": {
            "held_out_icons_compared": len(icons.held_out.rows),
            "training_icons_compared": len(icons.training.rows),
            "max_hash_distance": recipe.data.max_hash_distance,
            "removed_from_training": dict(Counter(m.how for m in icons.matches)),
            "bundled_drawings_left_out": icons.alike,
        },
        "evaluation": {
            "images": len(pictures),
            "classes": len({p.label for p in pictures}),
            "per_domain": {
                domain: (len({pictures[i].row for i in at}), len(at))
                for domain, at in _domains(pictures).items()
            },
        },
    }


def teacher_scores(
    trainer: teacher_recipe.TeacherTrainer,
    model: nn.Module,
    tokenizer: SimpleTokenizer,
    icons: World,
) -> Scores:
    """Zero-shot accuracy on the bundled set and on validation collections."""
    pictures, images = evaluation_images(icons)
    names = sorted({p.label for p in pictures})
    return {
        "parameters": _size(model),
        "vocabulary": tokenizer.vocab_size,
        "steps": trainer.step,
        "images_seen": trainer.step * trainer.recipe.batch_size,
        "hours": round(trainer.seconds / 3600, 2),
        "curve": trainer.curve,
        "zero_shot": _by_domain(model, tokenizer, pictures, images, names),
        "zero_shot_official": _official(model, tokenizer, pictures, images),
        "common_nouns": _noun_scores(model, tokenizer, icons),
        "styles": style_scores(model, tokenizer),
        "random_prompts": {
            f"e={scale:g}": _random_prompts(model, tokenizer, scale) for scale in _SCALES
        },
    }


def _official(
    model: nn.Module,
    tokenizer: SimpleTokenizer,
    pictures: Sequence[EvaluationImage],
    images: Tensor,
) -> Scores:
    """Accuracy on the official classes, in the domains that have enough images of each."""
    kept = [i for i, picture in enumerate(pictures) if picture.domain not in SPARSE]
    shown = [pictures[i] for i in kept]
    return {
        **_by_domain(model, tokenizer, shown, images[kept], list(OFFICIAL)),
        "names": list(OFFICIAL),
    }


@torch.no_grad()
def style_scores(model: Any, tokenizer: SimpleTokenizer) -> Scores:
    """How far prompts with styles lie apart, beside how far classes do.

    ``ratio`` is (1 - mean cosine over styles of one class) / (1 - mean cosine between classes of
    one style), near 1 for a CLIP; ``mix`` is the mean cosine of two mix prompts of a class (Eq 6).
    """
    styles = [word for word in vocabulary() if not word.endswith(" ground")]
    texts = [f"{name} in the style of {style}" for name in OFFICIAL for style in styles]
    embeddings = F.normalize(model.encode_text(tokenizer(texts)), dim=1)
    table = embeddings.view(len(OFFICIAL), len(styles), -1)
    between_styles = _mean_cosine(table)
    between_classes = _mean_cosine(table.transpose(0, 1))
    gen = torch.Generator().manual_seed(0)
    pairs = torch.randint(len(styles), (2, _PROMPTS_PER_CLASS), generator=gen)
    share = torch.rand(_PROMPTS_PER_CLASS, 1, generator=gen)
    mixed = share * table[:, pairs[0]] + (1 - share) * table[:, pairs[1]]
    return {
        "styles": len(styles),
        "between_styles": round(between_styles, 4),
        "between_classes": round(between_classes, 4),
        "ratio": round((1 - between_styles) / (1 - between_classes), 4),
        "mix": round(_mean_cosine(F.normalize(mixed, dim=-1)), 4),
    }


def _mean_cosine(groups: Tensor) -> float:
    """Mean cosine of two different rows of a group; unit rows [groups, N, E]."""
    count = groups.shape[1]
    total = groups.sum(1).square().sum(-1) - count
    return float((total / (count * (count - 1))).mean())


def generator_scores(
    trainer: generator.GeneratorTrainer,
    network: generator.Network,
    teacher: nn.Module,
    tokenizer: SimpleTokenizer,
    icons: World,
) -> Scores:
    """Quality of reconstructed held-out icons, and how well the teacher recognises them."""
    pictures, images = evaluation_images(icons)
    made = reconstruct(network, images)
    return {
        "decoder_parameters": _size(network.decoder),
        "parameters": _size(network),
        "codes": len(network.quantize.mass),
        "codes_used_by_the_bundled_set": _codes_used(network, images),
        "steps": trainer.step,
        "images_seen": trainer.step * trainer.recipe.batch_size,
        "hours": round(trainer.seconds / 3600, 2),
        **_fidelity(pictures, images, made),
        **_recognition(teacher, tokenizer, pictures, images, made),
    }


@torch.no_grad()
def _codes_used(network: generator.Network, images: Tensor) -> int:
    parts = [network.quantize(network.encode(part * 2 - 1))[1] for part in images.split(64)]
    return len(torch.cat(parts).unique())


def _fidelity(pictures: Sequence[EvaluationImage], images: Tensor, made: Tensor) -> Scores:
    """Pixel errors of the reconstructions `made` of `images`."""
    domains = _domains(pictures)
    colours = generator.colours_kept(made, images)
    ratios = {name: generator.psnr(made[at], images[at]) for name, at in domains.items()}
    ratios["mean"] = generator.psnr(made, images)
    return {
        "l1": round(float((made - images).abs().mean()), 4),
        "hue_error_degrees": round(colours.hue_error, 2),
        "chroma_kept": round(colours.chroma_kept, 4),
        "psnr_db": {name: round(ratio, 2) for name, ratio in ratios.items()},
    }


def _recognition(
    teacher: nn.Module,
    tokenizer: SimpleTokenizer,
    pictures: Sequence[EvaluationImage],
    images: Tensor,
    made: Tensor,
) -> Scores:
    """Accuracy of the teacher on `images` and on their reconstructions `made`."""
    names = sorted({p.label for p in pictures})
    before, after = (
        {
            "all": _by_domain(teacher, tokenizer, pictures, shown, names),
            "official": _official(teacher, tokenizer, pictures, shown),
        }
        for shown in (images, made)
    )
    return {
        "teacher_on_originals": before,
        "teacher_on_reconstructions": after,
        "teacher_kept": {
            k: round(after[k]["mean"] / max(before[k]["mean"], 1e-4), 4) for k in before
        },
    }


def machine_scores() -> Scores:
    """The machine, the library versions and the date."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": processor_name(),
        "processors": os.cpu_count(),
        "device": "cpu",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _LIBRARIES},
    }


def file_scores(folder: Path, names: Sequence[str]) -> Scores:
    """Size and sha256 of the exported files."""
    return {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name in names
        for data in [(folder / name).read_bytes()]
    }


def exported_teacher(
    trainer: teacher_recipe.TeacherTrainer, path: Path, vocabulary: int
) -> nn.Module:
    """The exported teacher as the package loads it: half-precision values in float32."""
    model = teacher_recipe.build(trainer.recipe, vocabulary)
    model.load_state_dict(load_file(path))
    return model.eval().requires_grad_(False)


def exported_generator(trainer: generator.GeneratorTrainer, path: Path) -> generator.Network:
    """The exported generator as the package loads it; the codebook's running sums are not
    exported.
    """
    network = generator.Network(trainer.recipe)
    loaded = network.load_state_dict(load_file(path), strict=False)
    if loaded.unexpected_keys or any(".weight" in key for key in loaded.missing_keys):
        raise RuntimeError(f"{path} does not fit its recipe: {loaded}")
    return network.eval()


def _by_domain(
    model: nn.Module,
    tokenizer: SimpleTokenizer,
    pictures: Sequence[EvaluationImage],
    images: Tensor,
    names: Sequence[str],
) -> Scores:
    positions = [i for i, p in enumerate(pictures) if p.label in names]
    labels = torch.tensor([names.index(pictures[i].label) for i in positions])
    correct = teacher_recipe.zero_shot(model, tokenizer, images[positions], labels, names).float()
    by_domain = _domains([pictures[i] for i in positions])
    shares = {domain: round(float(correct[at].mean()), 4) for domain, at in by_domain.items()}
    return {
        "classes": len(names),
        "images": len(positions),
        "chance": round(1 / len(names), 4),
        "accuracy": shares,
        "mean": round(sum(shares.values()) / len(shares), 4),
    }


def _noun_scores(model: nn.Module, tokenizer: SimpleTokenizer, icons: World) -> Scores:
    nouns = teacher_recipe.common_nouns(icons.rows, 200)
    images, labels = teacher_recipe.validation_set(icons.training, icons.validation, nouns)
    right = teacher_recipe.zero_shot(model, tokenizer, images, labels, nouns)
    return {
        "words": len(nouns),
        "images": len(labels),
        "chance": round(1 / len(nouns), 4),
        "accuracy": round(float(right.float().mean()), 4),
    }


@torch.no_grad()
def _random_prompts(model: Any, tokenizer: SimpleTokenizer, scale: float) -> Scores:
    """Prompts with random pseudo-words (Eq 8-11): their mean cosine within a class, and the share
    that is nearest to its own class's prompt.
    """
    gen = torch.Generator().manual_seed(0)
    classes = F.normalize(model.encode_text(tokenizer([f"A {name}" for name in OFFICIAL])), dim=1)
    repeated = [name for name in OFFICIAL for _ in range(_PROMPTS_PER_CLASS)]
    ids = tokenizer([f"{name} in the style of {_PLACEHOLDER}" for name in repeated])
    table = model.token_embedding.weight
    noise = torch.randn(len(ids), table.shape[1], generator=gen)
    words = table.mean(0) + scale * noise * table.std(0)
    place = (ids == tokenizer.encode(_PLACEHOLDER)[0]).unsqueeze(2)
    tokens = torch.where(place, words.unsqueeze(1), model.token_embedding(ids))
    prompts = F.normalize(teacher_recipe.encode_tokens(model, ids, tokens), dim=1)
    own = torch.arange(len(OFFICIAL)).repeat_interleave(_PROMPTS_PER_CLASS)
    nearest = (prompts @ classes.T).argmax(1)
    return {
        "cosine": round(_mean_cosine(prompts.view(len(OFFICIAL), _PROMPTS_PER_CLASS, -1)), 4),
        "own_class": round(float((nearest == own).float().mean()), 4),
    }


def _domains(pictures: Sequence[EvaluationImage]) -> dict[str, list[int]]:
    positions: dict[str, list[int]] = {domain: [] for domain in DOMAINS}
    for index, picture in enumerate(pictures):
        positions[picture.domain].append(index)
    return {domain: indices for domain, indices in positions.items() if indices}


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
