"""The numbers of the model card, measured on the exported files.

Scores are plain values, for `scores.json`. Accuracies are shares, 0-1, rounded to four digits.
Images of the evaluation set are scored before their WebP compression in `evaluation.tar`.
"""

import copy
import datetime
import hashlib
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file
from torch import Tensor, nn

from dfkd.config.paths import MINIATURE
from dfkd.lab.miniature import generator
from dfkd.lab.miniature import teacher as teacher_recipe
from dfkd.lab.miniature.evaluation_set import OFFICIAL, EvaluationImage
from dfkd.lab.miniature.generator import colours_kept, psnr
from dfkd.lab.miniature.looks import DOMAINS, SPARSE, vocabulary
from dfkd.lab.miniature.pretraining import DataSplit, reconstruct
from dfkd.lab.miniature.recipe import GeneratorRecipe, Recipe, TeacherRecipe
from dfkd.models.teacher import Teacher
from dfkd.prompts.diversity import pair_cosines
from dfkd.prompts.pseudo_words import PseudoWords
from dfkd.utils.hardware import describe_machine, environment

Scores = dict[str, Any]
_SCALES = (1.0, 3.0, 10.0)
"""Scales e of random pseudo-words (Eq 8-11) that are scored."""
_PROMPTS_PER_CLASS = 64
"""Random prompts, and pairs of mixed styles, of each official class."""


def data_scores(recipe: Recipe, split: DataSplit) -> Scores:
    """Counts of drawings and images, and how evaluation drawings were kept out of training."""
    evaluation = split.evaluation
    return {
        "package": recipe.data.package,
        "training": {
            "collections": len({row.collection for row in split.rows}),
            "icons": len(split.rows),
            "names": len({row.concept for row in split.rows}),
            "in_colour": sum(row.colour for row in split.rows),
        },
        "validation": dict(sorted(Counter(r.collection for r in split.validation).items())),
        "separation": {
            "held_out_icons_compared": len(split.held_out.rows),
            "training_icons_compared": len(split.training.rows),
            "max_hash_distance": recipe.data.max_hash_distance,
            "removed_from_training": dict(Counter(split.matches.values())),
            "bundled_drawings_left_out": split.left_out,
        },
        "evaluation": {
            "images": len(evaluation),
            "classes": len({image.label for image in evaluation}),
            # Numbers of drawings and of images.
            "per_domain": {
                domain: (len({evaluation[i].row for i in indices}), len(indices))
                for domain, indices in _indices_by_domain(evaluation).items()
            },
        },
    }


def teacher_scores(
    lengths: dict[str, Scores], model: nn.Module, tokenizer: SimpleTokenizer, split: DataSplit
) -> Scores:
    """Zero-shot accuracies, and how prompts with styles and pseudo-words lie.

    Args:
        lengths: of the `first` and the `second` training.
        model: the exported teacher.
    """
    accuracies = _accuracies(model, tokenizer, split.evaluation, split.evaluation_pixels())
    nouns = split.nouns()
    images, labels = split.validation_set(nouns)
    correct = teacher_recipe.zero_shot(model, tokenizer, images, labels, nouns)
    # A copy, because the library's teacher changes the memory layout of its model.
    teacher = Teacher(copy.deepcopy(model), tokenizer, MINIATURE, preprocess={})
    return {
        "parameters": _size(model),
        "vocabulary": tokenizer.vocab_size,
        "first": lengths["first"],
        "second": lengths["second"],
        "zero_shot": accuracies["all"],
        "zero_shot_official": accuracies["official"],
        # On the validation collections.
        "common_nouns": {
            "words": len(nouns),
            "images": len(labels),
            "chance": round(1 / len(nouns), 4),
            "accuracy": round(float(correct.float().mean()), 4),
        },
        "styles": style_scores(teacher),
        "random_prompts": {
            f"e={scale:g}": random_prompt_scores(teacher, scale) for scale in _SCALES
        },
    }


def _accuracies(
    model: nn.Module,
    tokenizer: SimpleTokenizer,
    evaluation: Sequence[EvaluationImage],
    images: Tensor,
) -> Scores:
    """Zero-shot accuracies on `all` classes and on the `official` ones, by domain and their mean.

    The latter leave out the domains that have too few images of them.
    """
    accuracies: Scores = {}
    known = sorted({image.label for image in evaluation})
    for kind, classes, sparse in (("all", known, frozenset()), ("official", [*OFFICIAL], SPARSE)):
        indices = [
            i
            for i, image in enumerate(evaluation)
            if image.label in classes and image.domain not in sparse
        ]
        labels = torch.tensor([classes.index(evaluation[i].label) for i in indices])
        correct = teacher_recipe.zero_shot(model, tokenizer, images[indices], labels, classes)
        by_domain = _indices_by_domain([evaluation[i] for i in indices])
        shares = {
            domain: round(float(correct[rows].float().mean()), 4)
            for domain, rows in by_domain.items()
        }
        accuracies[kind] = {
            "classes": len(classes),
            "images": len(indices),
            "chance": round(1 / len(classes), 4),
            "accuracy": shares,
            "mean": round(sum(shares.values()) / len(shares), 4),
        }
    accuracies["official"]["names"] = list(OFFICIAL)
    return accuracies


def style_scores(teacher: Teacher) -> Scores:
    """How far apart prompts with different styles lie, compared with different classes.

    Returns:
        `between_styles` and `between_classes`: mean cosines of two prompts of one class, and of
        one style; `ratio`: (1 - between_styles) / (1 - between_classes), near 1 for a CLIP;
        `mix`: the mean cosine of two mix prompts (Eq 6) of one class; `styles`: their number.
    """
    # Grounds in plain colours are no styles.
    styles = [word for word in vocabulary() if not word.endswith(" ground")]
    texts = [f"{name} in the style of {style}" for name in OFFICIAL for style in styles]
    table = teacher.encode_text(texts).view(len(OFFICIAL), len(styles), -1)
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
        "mix": round(_mean_cosine(mixed), 4),
    }


def _mean_cosine(groups: Tensor) -> float:
    """The mean cosine of all pairs of rows of one group, for rows [groups, N, E]."""
    labels = np.arange(len(groups)).repeat(groups.shape[1])
    return float(pair_cosines(groups.flatten(0, 1).numpy(), labels)[0].mean())


@torch.no_grad()
def generator_scores(
    network: generator.Autoencoder,
    teacher: nn.Module,
    tokenizer: SimpleTokenizer,
    split: DataSplit,
    before: dict[str, float],
) -> Scores:
    """Errors of reconstructions of the evaluation set, and the teacher's accuracy on them.

    Args:
        network, teacher: the exported generator and teacher.
        before: the teacher's mean accuracy on the images, over `all` classes and the `official`
            ones.
    """
    evaluation, images = split.evaluation, split.evaluation_pixels()
    reconstructed = reconstruct(network, images)
    after = _accuracies(teacher, tokenizer, evaluation, reconstructed)
    codes = [network.quantize(network.encode(part * 2 - 1))[1] for part in images.split(64)]
    hue_error, chroma_kept = colours_kept(reconstructed, images)
    domains = _indices_by_domain(evaluation)
    ratios = {name: psnr(reconstructed[rows], images[rows]) for name, rows in domains.items()}
    return {
        "decoder_parameters": _size(network.decoder),
        "parameters": _size(network),
        "codes": len(network.quantize.mass),
        "codes_used_by_the_bundled_set": len(torch.cat(codes).unique()),
        "l1": round(float((reconstructed - images).abs().mean()), 4),
        "hue_error_degrees": round(hue_error, 2),
        "chroma_kept": round(chroma_kept, 4),
        "psnr_db": {name: round(ratio, 2) for name, ratio in ratios.items()},
        "teacher_on_reconstructions": after,
        "teacher_kept": {k: round(after[k]["mean"] / max(before[k], 1e-4), 4) for k in before},
    }


def machine_scores() -> Scores:
    """The date, the machine and the versions of libraries."""
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    # What renders the drawings is needed nowhere else.
    renderer = {"resvg-py": metadata.version("resvg-py")}
    return {"date": date} | describe_machine() | environment() | renderer


def file_scores(folder: Path, names: Sequence[str]) -> Scores:
    """Size and sha256 of the exported files."""
    return {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name in names
        for data in [(folder / name).read_bytes()]
    }


def exported_teacher(recipe: TeacherRecipe, folder: Path, vocab_size: int) -> nn.Module:
    """The teacher in a folder as the package loads it: half-precision values in float32."""
    model = teacher_recipe.build(recipe, vocab_size)
    model.load_state_dict(load_file(folder / "teacher.safetensors"))
    return model.eval().requires_grad_(False)


def exported_generator(recipe: GeneratorRecipe, folder: Path) -> generator.Autoencoder:
    """The exported generator as the package loads it: half-precision values in float32."""
    network = generator.Autoencoder(recipe)
    # The codebook's running sums are not exported, so they stay as they are.
    exported = load_file(folder / "generator.safetensors")
    network.load_state_dict(network.state_dict() | exported)
    return network.eval()


def random_prompt_scores(teacher: Teacher, scale: float) -> Scores:
    """Prompts with random pseudo-words (Eq 8-11) of a scale e.

    Returns:
        `cosine`: the mean cosine of two prompts of one class; `own_class`: the share of prompts
        that are nearest to their own class's plain prompt.
    """
    pseudo_words = PseudoWords(teacher, "{class} in the style of {style}")
    names = [name for name in OFFICIAL for _ in range(_PROMPTS_PER_CLASS)]
    gen = torch.Generator().manual_seed(0)
    noise = torch.randn(len(names), teacher.token_table.shape[1], generator=gen)
    prompts = pseudo_words.encode(names, pseudo_words.around_the_mean(noise, scale))
    nearest = (prompts @ teacher.encode_text([f"A {name}" for name in OFFICIAL]).T).argmax(1)
    own = torch.arange(len(OFFICIAL)).repeat_interleave(_PROMPTS_PER_CLASS)
    return {
        "cosine": round(_mean_cosine(prompts.view(len(OFFICIAL), _PROMPTS_PER_CLASS, -1)), 4),
        "own_class": round(float((nearest == own).float().mean()), 4),
    }


def _indices_by_domain(evaluation: Sequence[EvaluationImage]) -> dict[str, list[int]]:
    """The indices of the images of each domain that has any, in the order of `DOMAINS`."""
    by_domain: dict[str, list[int]] = {domain: [] for domain in DOMAINS}
    for index, image in enumerate(evaluation):
        by_domain[image.domain].append(index)
    return {domain: indices for domain, indices in by_domain.items() if indices}


def _size(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())
