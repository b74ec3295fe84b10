"""The whole recipe: from an icon package to the folder of assets, with its model card."""

import json
import statistics
from pathlib import Path
from typing import Literal

import jinja2
import numpy as np
import torch
from PIL import Image

from dfkd.config.hashing import fingerprint
from dfkd.config.paths import MINIATURE
from dfkd.errors import ManifestError
from dfkd.lab.miniature import (
    classifier,
    diffusion,
    evaluation_set,
    pretraining,
    scoring,
    validation,
)
from dfkd.lab.miniature.captions import Captioner
from dfkd.lab.miniature.drawings import Batches, name_weights
from dfkd.lab.miniature.generator import Autoencoder
from dfkd.lab.miniature.icons import EVALUATION, common_nouns
from dfkd.lab.miniature.looks import DOMAINS
from dfkd.lab.miniature.pretraining import DataSplit
from dfkd.lab.miniature.recipe import ClassifierRecipe, Recipe, folder_of, identity, write_whole
from dfkd.lab.miniature.scoring import Scores
from dfkd.lab.miniature.training import log
from dfkd.models.generators.text_tower import shape_of
from dfkd.models.teacher import Teacher

FILES = (
    *("teacher.json", "teacher.safetensors", "bpe.txt.gz", "generator.yaml"),
    *("generator.safetensors", "backbone.safetensors", "evaluation.tar"),
)
"""The files whose hashes are part of the scores; first those of teacher and generator."""
Classifier = Literal["backbone", "judge"]
_COLUMNS = 16
"""Images of each domain in the picture of reconstructions."""


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
    captioner = pretraining.write_captioner(recipe, split, output)
    tokenizer = captioner.tokenizer
    folder = pretraining.train_teacher(recipe, split, captioner)
    first = scoring.exported_teacher(recipe.teacher, folder, tokenizer.vocab_size)
    generator_trainer = pretraining.train_generator(recipe, split, first, output)
    tower_trainer = pretraining.train_tower(recipe, split, captioner, folder, output)
    lengths = {
        "first": json.loads((folder / "scores.json").read_text("utf-8")),
        "second": tower_trainer.scores() | {"class_share": recipe.tower.class_share},
    }
    # As exported: in their users' half precision.
    teacher = scoring.exported_teacher(recipe.teacher, output, tokenizer.vocab_size)
    generator = scoring.exported_generator(recipe.generator, output)

    backbone = _train_classifier(recipe, split, "backbone")
    clip = Teacher(teacher, tokenizer, MINIATURE, preprocess={})
    diffusion_scores = _make_diffusion(recipe, split, clip, generator, captioner, command)
    evaluation_set.write(split.evaluation, output / "evaluation.tar")
    of_teacher = scoring.teacher_scores(lengths, teacher, tokenizer, split)
    before = {
        "all": of_teacher["zero_shot"]["mean"],
        "official": of_teacher["zero_shot_official"]["mean"],
    }
    scores = {
        "schema": 1,
        "recipe": fingerprint(identity(recipe, "models")),
        "command": command,
        "seed": recipe.seed,
        "machine": scoring.machine_scores(),
        "data": scoring.data_scores(recipe, split),
        "teacher": of_teacher,
        "generator": generator_trainer.scores()
        | scoring.generator_scores(generator, teacher, tokenizer, split, before),
        "backbone": backbone,
        "files": scoring.file_scores(output, FILES),
    }

    # For each domain images above their reconstructions.
    images = split.evaluation_pixels()
    reconstructed = pretraining.reconstruct(generator, images)
    strips = []
    for domain in DOMAINS:
        rows = [i for i, image in enumerate(split.evaluation) if image.domain == domain]
        # Evenly spread over the domain, which is sorted by class.
        spread = [rows[i * len(rows) // _COLUMNS] for i in range(_COLUMNS)]
        strips += [diffusion.strip(images[spread]), diffusion.strip(reconstructed[spread])]
    Image.fromarray(np.concatenate(strips)).save(output / "reconstructions.png", optimize=True)
    write_card(scores, diffusion_scores, output)
    _write_notice(recipe, split, output)
    return _write_scores(scores, output)


def make_single(recipe: Recipe, kind: Classifier | Literal["diffusion"], command: str) -> Path:
    """Train only one model; returns the path of its weights or, of the diffusion model, its scores.

    The diffusion model needs the teacher and the generator of this recipe in `recipe.output`,
    whose model card is written anew.

    Raises:
        ManifestError: as `make`, or the output lacks the models that a diffusion model needs.
    """
    torch.set_num_threads(recipe.threads)
    split, output = pretraining.split_drawings(recipe), Path(recipe.output)
    if kind != "diffusion":
        _train_classifier(recipe, split, kind)
        return output / f"{kind}.safetensors"
    # The scores beside the models tell whose they are, and the hashes there that they are whole.
    record, needed = output / "scores.json", FILES[:5]
    scores = json.loads(record.read_text("utf-8")) if record.is_file() else {"files": {}}
    here = [name for name in needed if (output / name).is_file()]
    if scores.get("recipe") != fingerprint(identity(recipe, "models")) or (
        scoring.file_scores(output, here) != {name: scores["files"].get(name) for name in needed}
    ):
        # Training them here would replace the files of the output before their scores.
        raise ManifestError(
            "output",
            "must hold the teacher and the generator of this recipe",
            recipe.output,
            "run without --only first",
        )
    log(f"teacher and generator of {output}")
    captioner = pretraining.read_captioner(recipe, split, output)
    tokenizer = captioner.tokenizer
    model = scoring.exported_teacher(recipe.teacher, output, tokenizer.vocab_size)
    teacher = Teacher(model, tokenizer, MINIATURE, preprocess={})
    generator = scoring.exported_generator(recipe.generator, output)
    made = _make_diffusion(recipe, split, teacher, generator, captioner, command)
    write_card(scores, made, output)
    return output / "diffusion" / "scores.json"


def _make_diffusion(
    recipe: Recipe,
    split: DataSplit,
    teacher: Teacher,
    generator: Autoencoder,
    captioner: Captioner,
    command: str,
) -> Scores:
    """Train the diffusion model and export it in diffusers' layout; returns its scores."""
    output = Path(recipe.output)
    folder, rows = output / "diffusion", split.training.rows
    # The training drawings have 43,000 names. A model of this size learned hardly one of them in
    # 200,000 images, because each was shown too rarely: "cat" in 100 of them. Of the 300 most
    # frequent ones, it learned in 400,000 images those that many sets draw alike, such as a clock,
    # and not "fish". So it learns the classes that the evaluation set has, from other drawings.
    keep = np.array([i for i in split.keep if rows[i].concept in evaluation_set.NAMES])
    # Another seed than those of teacher and generator, so that it does not see their batches.
    size, seed = recipe.diffusion.batch_size, recipe.seed + 7
    trainer = diffusion.DiffusionTrainer(
        recipe.diffusion,
        recipe.generator,
        Batches(split.training, keep, size, seed, name_weights),
        generator,
        teacher,
        captioner,
        folder_of(recipe, "diffusion"),
        recipe.seed,
    )
    held_out = validation.prepare(split, teacher, recipe.diffusion.pose)

    def export() -> None:
        """Write the averaged network in diffusers' layout."""
        vae = diffusion.autoencoder(recipe.generator, generator, trainer.space)
        shape = shape_of(trainer.teacher, trainer.layers)
        diffusion.write_configurations(folder, trainer.average, vae, shape)
        for part, network in {"unet": trainer.average, "vae": vae}.items():
            path = folder / part / "diffusion_pytorch_model.safetensors"
            pretraining.export(network.state_dict(), path)

    def measure(place: Path) -> None:
        """Add a measurement of the model in a folder, which is that of the trainer's step."""
        measured = validation.measure(place, held_out, teacher)
        log(f"diffusion step {trainer.step}: {measured}")
        trainer.validations.append({"images": trainer.step * size, **measured})

    def validate() -> None:
        """Export and measure, where it is time for it."""
        step = trainer.step
        if step % recipe.diffusion.validate_every == 0 or step == recipe.diffusion.steps:
            export()
            measure(folder)

    if recipe.diffusion.start and not trainer.path.exists():
        measure(Path(recipe.diffusion.start))
    trainer.run(validate)
    export()
    (folder / "training.svg").write_bytes(validation.figure(trainer.validations))
    names = [str(path.relative_to(output)) for path in sorted(folder.glob("*/*"))]
    scores = {
        "recipe": fingerprint(identity(recipe, "diffusion")),
        "command": command,
        "seed": recipe.seed,
        "machine": scoring.machine_scores(),
        **diffusion.sample_scores(trainer, folder),
        "files": scoring.file_scores(output, names),
    }
    _write_scores(scores, folder)
    return scores


def _train_classifier(recipe: Recipe, split: DataSplit, kind: Classifier) -> Scores:
    """Train a classifier and write its weights to the output; returns its scores."""
    settings: ClassifierRecipe
    if kind == "backbone":
        # The drawings of each frequent noun that no student is to learn.
        settings = recipe.backbone
        by_class = {
            noun: [row for row in split.rows if row.concept == noun]
            for noun in common_nouns(split.rows, recipe.backbone.nouns)
            if noun not in recipe.backbone.without
        }
    else:
        # The drawings of each official class, by all names that the evaluation set uses.
        settings, drawings = recipe.judge, evaluation_set.by_class(split.rows)
        by_class = {name: drawings[name] for name in evaluation_set.OFFICIAL if name in drawings}
    batches = classifier.LabelledBatches(
        split.training, list(by_class.values()), settings.default_share, recipe.seed
    )
    trainer = classifier.ClassifierTrainer(settings, batches, folder_of(recipe, kind), recipe.seed)
    trainer.run()
    network = trainer.network.eval()
    images, labels = split.validation_set(list(by_class))
    accuracy = classifier.accuracy(network, images, labels)
    log(f"{accuracy:.3f} of {len(labels)} validation icons named, of {len(by_class)} classes")
    path = Path(recipe.output, f"{kind}.safetensors")
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


def _write_scores(scores: Scores, folder: Path) -> Path:
    """Write `scores.json`; returns its path."""
    path = folder / "scores.json"
    write_whole(path, json.dumps(scores, indent=2, ensure_ascii=False) + "\n")
    return path


def write_card(scores: Scores, diffusion_scores: Scores, folder: Path) -> None:
    """Write `MODEL_CARD.md`, all of whose numbers come from the scores."""
    environment = jinja2.Environment(  # noqa: S701 - Markdown, of the job's own numbers and names
        loader=jinja2.PackageLoader("dfkd.lab.miniature", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "n": "{:,}".format,
        "percent": lambda share: f"{100 * share:.1f}",
        "mean": statistics.fmean,
    }
    template = environment.get_template("card.md.jinja")
    text = template.render(scores=scores, diffusion=diffusion_scores)
    (folder / "MODEL_CARD.md").write_text(text, "utf-8")


def _write_notice(recipe: Recipe, split: DataSplit, folder: Path) -> None:
    """Write `NOTICE`: every collection whose icons were used, with its author and licence."""
    described = split.catalogue.collections
    # Clip art is a collection of rows too, but none of the package.
    used = {row.collection for row in (*split.rows, *split.validation)} & described.keys()
    parts = [
        f"The models and images in this folder derive from icon sets of the npm package\n"
        f"{recipe.data.package} (https://iconify.design), all under permissive licences, and from\n"
        f"the Open Clip Art Library (https://openclipart.org), whose drawings are in the public "
        f"domain."
    ]
    for heading, prefixes in (
        ("Used for training or validation:", sorted(used)),
        ("Images of these sets are in evaluation.tar (painted, 64 px):", EVALUATION),
    ):
        collections = [described[prefix] for prefix in prefixes]
        lines = [f"- {c.title} ({c.prefix}), {c.author}, {c.licence}, {c.url}" for c in collections]
        parts.append("\n".join([heading, *sorted(lines, key=str.lower)]))
    (folder / "NOTICE").write_text("\n\n".join(parts) + "\n", "utf-8")
