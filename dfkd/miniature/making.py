"""The whole recipe: from an icon package to the folder of assets, with its model card."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torch import nn

from dfkd.config.hashing import fingerprint
from dfkd.miniature import card, evaluation_set, pretraining, samples, scoring, work_folder
from dfkd.miniature.captions import Captioner
from dfkd.miniature.drawings.nouns import common_nouns
from dfkd.miniature.drawings.rendering import DrawingRow
from dfkd.miniature.looks.domains import DOMAINS
from dfkd.miniature.pretraining import DataSplit
from dfkd.miniature.recipe import Recipe
from dfkd.miniature.scoring import Scores
from dfkd.miniature.training import classifier, diffusion
from dfkd.miniature.training.generator import Network
from dfkd.models.teacher import Teacher
from dfkd.models.weights.reading import MINIATURE

#: The files of the models and the evaluation set, whose hashes are part of the scores.
FILES = (
    "teacher.json",
    "teacher.safetensors",
    "bpe.txt.gz",
    "generator.yaml",
    "generator.safetensors",
    "diffusion/scheduler/scheduler_config.json",
    "diffusion/text_encoder/config.json",
    "diffusion/tokenizer/tokenizer_config.json",
    "diffusion/unet/config.json",
    "diffusion/unet/diffusion_pytorch_model.safetensors",
    "diffusion/vae/config.json",
    "diffusion/vae/diffusion_pytorch_model.safetensors",
    "backbone.safetensors",
    "evaluation.tar",
)
Classifier = Literal["backbone", "judge"]


def make(recipe: Recipe, command: str) -> Path:
    """Run every stage, resuming an earlier call; returns the path of ``scores.json``.

    Args:
        command: the command line, for the model card.

    Raises:
        ManifestError: the icon package or the clip art is not where the recipe says.
        InfrastructureError: the icon package could not be downloaded.
        FingerprintError: the work folder belongs to another recipe.
    """
    torch.set_num_threads(recipe.threads)
    output = Path(recipe.output)
    split = pretraining.split_drawings(recipe)
    tokenizer, words = pretraining.write_tokenizer(recipe, split, output)
    teacher_trainer = pretraining.train_teacher(recipe, split, tokenizer, words, output)
    # All later stages use the files, with their half precision, as the users of the package do.
    teacher = scoring.exported_teacher(recipe.teacher, output, tokenizer.vocab_size)
    generator_trainer = pretraining.train_generator(recipe, split, teacher, output)
    generator = scoring.exported_generator(recipe.generator, output)
    diffusion_trainer = _train_diffusion(
        recipe, split, (tokenizer, words), teacher, generator, output
    )
    backbone = _train_classifier(recipe, split, "backbone")
    evaluation_set.write(split.evaluation, output / "evaluation.tar")
    scores = {
        "schema": 1,
        "recipe": fingerprint(work_folder.identity(recipe)),
        "command": command,
        "seed": recipe.seed,
        "note": recipe.note,
        "machine": scoring.machine_scores(),
        "data": scoring.data_scores(recipe, split),
        "teacher": scoring.teacher_scores(teacher_trainer, teacher, tokenizer, split),
        "generator": scoring.generator_scores(
            generator_trainer, generator, teacher, tokenizer, split
        ),
        "diffusion": samples.scores(diffusion_trainer, output),
        "backbone": backbone,
        "files": scoring.file_scores(output, FILES),
    }
    write_reconstructions(split, generator, output)
    card.write(scores, output)
    card.write_notice(recipe, split, output)
    return write_scores(scores, output)


def _train_diffusion(
    recipe: Recipe,
    split: DataSplit,
    language: tuple[SimpleTokenizer, list[str]],
    teacher: nn.Module,
    vqgan: Network,
    output: Path,
) -> diffusion.DiffusionTrainer:
    """Train the diffusion model and export it in diffusers' layout; returns the trainer.

    Args:
        language: the teacher's tokenizer and the words of its captions.
        teacher, vqgan: the exported models.
    """
    tokenizer, words = language
    captioner = Captioner(tokenizer.encode, tokenizer.sot_token_id, tokenizer.eot_token_id, words)
    trainer = diffusion.DiffusionTrainer(
        recipe.diffusion,
        recipe.generator,
        split.training,
        split.keep,
        vqgan,
        # A copy, because the library's teacher changes the memory layout of its model.
        Teacher(copy.deepcopy(teacher), tokenizer, MINIATURE, preprocess={}),
        captioner,
        work_folder.claim(recipe, "diffusion"),
        recipe.seed,
        pretraining.log,
    )
    unet, folder = trainer.run(), output / "diffusion"
    vae = diffusion.autoencoder(recipe.generator, vqgan, 1 / trainer.deviation)
    text = diffusion.text_encoder(recipe.teacher, tokenizer.vocab_size)
    diffusion.write_configurations(folder, unet, vae, text)
    for part, network in {"unet": unet, "vae": vae}.items():
        path = folder / part / "diffusion_pytorch_model.safetensors"
        pretraining.export(network.state_dict(), path)
    return trainer


def make_classifier(recipe: Recipe, kind: Classifier) -> Path:
    """Train only one of the classifiers; returns the path of its weights.

    Raises:
        DfkdError: as `make`.
    """
    torch.set_num_threads(recipe.threads)
    _train_classifier(recipe, pretraining.split_drawings(recipe), kind)
    return _classifier_file(recipe, kind)


def _classifier_file(recipe: Recipe, kind: Classifier) -> Path:
    """The file of a classifier's weights."""
    return Path(recipe.output) / f"{kind}.safetensors"


def _train_classifier(recipe: Recipe, split: DataSplit, kind: Classifier) -> Scores:
    """Train a classifier and write its weights; returns its scores."""
    settings = recipe.backbone if kind == "backbone" else recipe.judge
    by_class = _backbone_classes(recipe, split) if kind == "backbone" else _judge_classes(split)
    batches = classifier.LabelledBatches(
        split.training, list(by_class.values()), settings.default_share, recipe.seed
    )
    folder = work_folder.claim(recipe, kind)
    network = classifier.ClassifierTrainer(settings, batches, folder, recipe.seed).run(
        pretraining.log
    )
    images, labels = split.validation_set(list(by_class))
    accuracy = classifier.accuracy(network, images, labels)
    pretraining.log(
        f"{accuracy:.3f} of {len(labels)} validation icons named, of {len(by_class)} classes"
    )
    path = _classifier_file(recipe, kind)
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
    """Write ``scores.json``; returns its path."""
    path = folder / "scores.json"
    path.write_text(json.dumps(scores, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return path


def write_reconstructions(
    split: DataSplit, generator: Network, folder: Path, columns: int = 16
) -> None:
    """Write ``reconstructions.png``: for each domain a row of images above their reconstructions.

    Args:
        columns: number of images of each domain.
    """
    images = split.evaluation_pixels()
    reconstructed = pretraining.reconstruct(generator, images)
    strips = []
    for domain in DOMAINS:
        rows = [i for i, image in enumerate(split.evaluation) if image.domain == domain]
        # Evenly spread over the domain, which is sorted by class.
        spread = [rows[i * len(rows) // columns] for i in range(columns)]
        strips += [samples.strip(images[spread]), samples.strip(reconstructed[spread])]
    Image.fromarray(np.concatenate(strips)).save(folder / "reconstructions.png", optimize=True)
