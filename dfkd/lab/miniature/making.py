"""The whole recipe: from an icon package to the folder of assets, with its model card."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import nn

from dfkd.config.hashing import fingerprint
from dfkd.config.paths import MINIATURE
from dfkd.errors import ManifestError
from dfkd.lab.miniature import card, evaluation_set, pretraining, samples, scoring, work_folder
from dfkd.lab.miniature.captions import Captioner
from dfkd.lab.miniature.drawings.nouns import common_nouns
from dfkd.lab.miniature.drawings.rendering import DrawingRow
from dfkd.lab.miniature.drawings.sampling import Batches, name_weights
from dfkd.lab.miniature.looks.domains import DOMAINS
from dfkd.lab.miniature.pretraining import DataSplit
from dfkd.lab.miniature.recipe import Recipe
from dfkd.lab.miniature.scoring import Scores
from dfkd.lab.miniature.training import classifier, diffusion
from dfkd.lab.miniature.training.common import log
from dfkd.lab.miniature.training.generator import Autoencoder
from dfkd.models.generators.text_tower import shape_of
from dfkd.models.teacher import Teacher

MODEL_FILES = (
    "teacher.json",
    "teacher.safetensors",
    "bpe.txt.gz",
    "generator.yaml",
    "generator.safetensors",
)
"""The files of teacher and generator."""
FILES = (*MODEL_FILES, "backbone.safetensors", "evaluation.tar")
"""The files whose hashes are part of the scores."""
_COLUMNS = 16
"""Images of each domain in the picture of reconstructions."""
Classifier = Literal["backbone", "judge"]
Single = Classifier | Literal["diffusion"]
"""Models that can be trained alone."""


@dataclass(frozen=True)
class Models:
    """The two models that others are made with, as exported: in their users' half precision."""

    captioner: Captioner
    """Of the teacher's captions."""
    teacher: nn.Module
    generator: Autoencoder


def make(recipe: Recipe, command: str) -> Path:
    """Run every stage, resuming an earlier call; returns the path of `scores.json`.

    Args:
        command: the command line, for the model card.

    Raises:
        ManifestError: the icon package or the clip art is not where the recipe says.
    """
    torch.set_num_threads(recipe.threads)
    output = Path(recipe.output)
    split = pretraining.split_drawings(recipe)
    models, lengths = _train_models(recipe, split, output)
    backbone = _train_classifier(recipe, split, "backbone", output)
    _make_diffusion(recipe, split, models, output, command)
    evaluation_set.write(split.evaluation, output / "evaluation.tar")
    tokenizer = models.captioner.tokenizer
    of_teacher = scoring.teacher_scores(lengths, models.teacher, tokenizer, split)
    before = {
        "all": of_teacher["zero_shot"]["mean"],
        "official": of_teacher["zero_shot_official"]["mean"],
    }
    scores = {
        "schema": 1,
        "recipe": fingerprint(work_folder.identity(recipe, "models")),
        "command": command,
        "seed": recipe.seed,
        "machine": scoring.machine_scores(),
        "data": scoring.data_scores(recipe, split),
        "teacher": of_teacher,
        "generator": lengths["generator"]
        | scoring.generator_scores(models.generator, models.teacher, tokenizer, split, before),
        "backbone": backbone,
        "files": scoring.file_scores(output, FILES),
    }
    write_reconstructions(split, models.generator, output)
    path = write_scores(scores, output)
    card.write(output)
    card.write_notice(recipe, split, output)
    return path


def make_single(recipe: Recipe, kind: Single, command: str) -> Path:
    """Train only one model; returns the path of its weights or, of the diffusion model, its scores.

    The diffusion model needs the teacher and the generator of this recipe in `recipe.output`,
    whose model card is written anew.

    Args:
        command: the command line, for the model card.

    Raises:
        DfkdError: as `make`, or the output lacks the models that a diffusion model needs.
    """
    torch.set_num_threads(recipe.threads)
    split, output = pretraining.split_drawings(recipe), Path(recipe.output)
    if kind == "diffusion":
        models = _exported_models(recipe, split, output)
        if models is None:
            # Training them here would replace the files of the output before their scores.
            raise ManifestError(
                "output",
                "must hold the teacher and the generator of this recipe",
                recipe.output,
                "run without --only first",
            )
        path = _make_diffusion(recipe, split, models, output, command)
        card.write(output)
        return path
    _train_classifier(recipe, split, kind, output)
    return output / f"{kind}.safetensors"


def _train_models(
    recipe: Recipe, split: DataSplit, output: Path
) -> tuple[Models, dict[str, Scores]]:
    """Train and export teacher and generator; returns the lengths of the trainings, too."""
    captioner = pretraining.write_captioner(recipe, split, output)
    folder = pretraining.train_teacher(recipe, split, captioner)
    vocab_size = captioner.tokenizer.vocab_size
    first = scoring.exported_teacher(recipe.teacher, folder, vocab_size)
    generator_trainer = pretraining.train_generator(recipe, split, first, output)
    tower_trainer = pretraining.train_tower(recipe, split, captioner, folder, output)
    lengths = {
        "first": json.loads((folder / "scores.json").read_text("utf-8")),
        "second": tower_trainer.scores() | {"class_share": recipe.tower.class_share},
        "generator": generator_trainer.scores(),
    }
    teacher = scoring.exported_teacher(recipe.teacher, output, vocab_size)
    generator = scoring.exported_generator(recipe.generator, output)
    return Models(captioner, teacher, generator), lengths


def _exported_models(recipe: Recipe, split: DataSplit, folder: Path) -> Models | None:
    """Teacher and generator that an earlier run of this recipe exported, or None.

    The scores beside them tell whose they are, and the hashes there that they are whole.
    """
    record = folder / "scores.json"
    if not record.is_file():
        return None
    scores = json.loads(record.read_text("utf-8"))
    names = [name for name in MODEL_FILES if (folder / name).is_file()]
    exported = {name: scores["files"].get(name) for name in MODEL_FILES}
    if scores["recipe"] != fingerprint(work_folder.identity(recipe, "models")):
        return None
    if scoring.file_scores(folder, names) != exported:
        return None
    log(f"teacher and generator of {folder}")
    captioner = pretraining.read_captioner(recipe, split, folder)
    teacher = scoring.exported_teacher(recipe.teacher, folder, captioner.tokenizer.vocab_size)
    return Models(captioner, teacher, scoring.exported_generator(recipe.generator, folder))


def _make_diffusion(
    recipe: Recipe, split: DataSplit, models: Models, output: Path, command: str
) -> Path:
    """Train the diffusion model and export it in diffusers' layout; returns its scores' path."""
    folder = output / "diffusion"
    trainer = diffusion.DiffusionTrainer(
        recipe.diffusion,
        recipe.generator,
        _named_batches(recipe, split),
        models.generator,
        Teacher(models.teacher, models.captioner.tokenizer, MINIATURE, preprocess={}),
        models.captioner,
        work_folder.folder_of(recipe, "diffusion"),
        recipe.seed,
    )
    trainer.run()
    unet = trainer.average
    vae = diffusion.autoencoder(recipe.generator, models.generator, trainer.space)
    diffusion.write_configurations(folder, unet, vae, shape_of(trainer.teacher, trainer.layers))
    for part, network in {"unet": unet, "vae": vae}.items():
        path = folder / part / "diffusion_pytorch_model.safetensors"
        pretraining.export(network.state_dict(), path)
    names = [str(path.relative_to(output)) for path in sorted(folder.glob("*/*"))]
    scores = {
        "recipe": fingerprint(work_folder.identity(recipe, "diffusion")),
        "command": command,
        "seed": recipe.seed,
        "machine": scoring.machine_scores(),
        **samples.scores(trainer, folder),
        "files": scoring.file_scores(output, names),
    }
    return write_scores(scores, folder)


def _named_batches(recipe: Recipe, split: DataSplit) -> Batches:
    """Batches of the training drawings that show a class of the evaluation set."""
    rows = split.training.rows
    # The training drawings have 43,000 names. A model of this size learned hardly one of them in
    # 200,000 images, because each was shown too rarely: "cat" in 100 of them. Of the 300 most
    # frequent ones, it learned in 400,000 images those that many sets draw alike, such as a clock,
    # and not "fish". So it learns the classes that the evaluation set has, from other drawings.
    keep = np.array([i for i in split.keep if rows[i].concept in evaluation_set.NAMES])
    # Another seed than those of teacher and generator, so that it does not see their batches.
    return Batches(split.training, keep, recipe.diffusion.batch_size, recipe.seed + 7, name_weights)


def _train_classifier(recipe: Recipe, split: DataSplit, kind: Classifier, output: Path) -> Scores:
    """Train a classifier and write its weights to `output`; returns its scores."""
    settings = recipe.backbone if kind == "backbone" else recipe.judge
    by_class = _backbone_classes(recipe, split) if kind == "backbone" else _judge_classes(split)
    batches = classifier.LabelledBatches(
        split.training, list(by_class.values()), settings.default_share, recipe.seed
    )
    folder = work_folder.folder_of(recipe, kind)
    trainer = classifier.ClassifierTrainer(settings, batches, folder, recipe.seed)
    trainer.run()
    network = trainer.network.eval()
    images, labels = split.validation_set(list(by_class))
    accuracy = classifier.accuracy(network, images, labels)
    log(f"{accuracy:.3f} of {len(labels)} validation icons named, of {len(by_class)} classes")
    path = output / f"{kind}.safetensors"
    classifier.save(network, path, settings.architecture, list(by_class))
    return {
        "architecture": settings.architecture,
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "steps": settings.steps,
        "images_seen": settings.steps * settings.batch_size,
        "default_share": settings.default_share,
        "classes": len(by_class),
        "images": len(labels),
        "accuracy": round(accuracy, 4),
    }


def _backbone_classes(recipe: Recipe, split: DataSplit) -> dict[str, list[DrawingRow]]:
    """The drawings of each frequent noun that no student is to learn."""
    nouns = common_nouns(split.rows, recipe.backbone.nouns)
    return {
        noun: [row for row in split.rows if row.concept == noun]
        for noun in nouns
        if noun not in recipe.backbone.without
    }


def _judge_classes(split: DataSplit) -> dict[str, list[DrawingRow]]:
    """The training drawings of each official class, by all names that the evaluation set uses."""
    drawings = evaluation_set.by_class(split.rows)
    return {label: drawings[label] for label in evaluation_set.OFFICIAL if label in drawings}


def write_scores(scores: Scores, folder: Path) -> Path:
    """Write `scores.json`; returns its path."""
    path = folder / "scores.json"
    work_folder.write_whole(path, json.dumps(scores, indent=2, ensure_ascii=False) + "\n")
    return path


def write_reconstructions(split: DataSplit, generator: Autoencoder, folder: Path) -> None:
    """Write `reconstructions.png`: for each domain images above their reconstructions."""
    images = split.evaluation_pixels()
    reconstructed = pretraining.reconstruct(generator, images)
    strips = []
    for domain in DOMAINS:
        rows = [i for i, image in enumerate(split.evaluation) if image.domain == domain]
        # Evenly spread over the domain, which is sorted by class.
        spread = [rows[i * len(rows) // _COLUMNS] for i in range(_COLUMNS)]
        strips += [samples.strip(images[spread]), samples.strip(reconstructed[spread])]
    Image.fromarray(np.concatenate(strips)).save(folder / "reconstructions.png", optimize=True)
