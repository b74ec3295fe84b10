"""The whole recipe: from an icon package to the folder of assets that the package ships."""

from __future__ import annotations

from pathlib import Path

import torch

from dfkd.fingerprint import fingerprint
from dfkd.miniature import (
    backbone,
    cards,
    evaluation_set,
    pretraining,
    scoring,
    teacher_recipe,
)
from dfkd.miniature.icons import EVALUATION
from dfkd.miniature.pretraining import World
from dfkd.miniature.recipe import Recipe

FILES = (
    "teacher.json",
    "teacher.safetensors",
    "bpe.txt.gz",
    "generator.yaml",
    "generator.safetensors",
    "evaluation.tar",
)


def make(recipe: Recipe, shown: str) -> Path:
    """Run every stage, resuming what an earlier call left; returns the path of the scores.

    Args:
        shown: the command line, for the model card.

    Raises:
        DfkdError: no icon package, or the work folder holds the work of another recipe.
    """
    torch.set_num_threads(recipe.threads)
    output = Path(recipe.output)
    pretraining.claim(recipe)
    icons = pretraining.world(recipe)
    tokenizer, words = pretraining.tokenizer(recipe, icons, output)
    learner = pretraining.train_teacher(recipe, icons, tokenizer, words, output)
    teacher = scoring.exported_teacher(
        learner, output / "teacher.safetensors", tokenizer.vocab_size
    )
    maker = pretraining.train_generator(recipe, icons, teacher, output)
    generator = scoring.exported_generator(maker, output / "generator.safetensors")
    pictures, images = pretraining.evaluation_images(icons)
    evaluation_set.write(pictures, output / "evaluation.tar")
    made = pretraining.reconstruct(generator, images)
    scores = {
        "schema": 1,
        "recipe": fingerprint(pretraining.identity(recipe)),
        "command": shown,
        "seed": recipe.seed,
        "note": recipe.note,
        "machine": scoring.machine_scores(),
        "data": scoring.data_scores(recipe, icons),
        "teacher": scoring.teacher_scores(learner, teacher, tokenizer, icons),
        "generator": scoring.generator_scores(maker, generator, teacher, tokenizer, icons),
        "files": scoring.file_scores(output, FILES),
    }
    cards.write_picture(pictures, images, made, output)
    cards.write_card(scores, output)
    _write_notice(recipe, icons, output)
    return cards.write_scores(scores, output)


def make_backbone(recipe: Recipe) -> Path:
    """Train only the classifier of icons that `recipe.backbone` describes; returns its weights.

    Raises:
        DfkdError: as `make`.
    """
    torch.set_num_threads(recipe.threads)
    pretraining.claim(recipe)
    icons = pretraining.world(recipe)
    nouns = [
        noun
        for noun in teacher_recipe.common_nouns(icons.rows, recipe.backbone.nouns)
        if noun not in recipe.backbone.without
    ]
    batches = backbone.IconBatches(icons.training, icons.rows, nouns, recipe.seed)
    folder = Path(recipe.data.work) / "models"
    network = backbone.Trainer(recipe.backbone, batches, folder, recipe.seed).run(pretraining.log)
    seen = teacher_recipe.validation_set(icons.training, icons.validation, nouns)
    right = backbone.accuracy(network, *seen)
    pretraining.log(f"{right:.3f} of {len(seen[1])} validation icons named, of {len(nouns)} nouns")
    return backbone.save(
        network, Path(recipe.output) / f"{recipe.backbone.architecture}.safetensors"
    )


def _write_notice(recipe: Recipe, icons: World, output: Path) -> None:
    described = icons.catalogue.collections
    learned = sorted(pretraining.collections_of([*icons.rows, *icons.validation]))
    shown = [prefix for group in EVALUATION.values() for prefix in group]
    cards.write_notice(
        [described[p] for p in learned], [described[p] for p in shown], recipe.data.package, output
    )
