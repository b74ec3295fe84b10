"""The whole recipe: from an icon package to the folder of assets in the package."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dfkd.config.fingerprint import fingerprint
from dfkd.miniature import backbone, evaluation_set, pretraining, scoring, work_folder
from dfkd.miniature import (
    teacher as teacher_recipe,
)
from dfkd.miniature.evaluation_set import EvaluationImage
from dfkd.miniature.icons import EVALUATION, Collection
from dfkd.miniature.looks.domains import DOMAINS
from dfkd.miniature.pretraining import World
from dfkd.miniature.recipe import Recipe
from dfkd.utils.pixels import to_bytes

FILES = (
    "teacher.json",
    "teacher.safetensors",
    "bpe.txt.gz",
    "generator.yaml",
    "generator.safetensors",
    "evaluation.tar",
)


def make(recipe: Recipe, shown: str) -> Path:
    """Run every stage, resuming an earlier call; returns the path of the scores.

    Args:
        shown: the command line, for the model card.

    Raises:
        DfkdError: there is no icon package, or the work folder belongs to another recipe.
    """
    torch.set_num_threads(recipe.threads)
    output = Path(recipe.output)
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
        "recipe": fingerprint(work_folder.identity(recipe)),
        "command": shown,
        "seed": recipe.seed,
        "note": recipe.note,
        "machine": scoring.machine_scores(),
        "data": scoring.data_scores(recipe, icons),
        "teacher": scoring.teacher_scores(learner, teacher, tokenizer, icons),
        "generator": scoring.generator_scores(maker, generator, teacher, tokenizer, icons),
        "files": scoring.file_scores(output, FILES),
    }
    write_picture(pictures, images, made, output)
    write_card(scores, output)
    _write_notice(recipe, icons, output)
    return write_scores(scores, output)


def make_backbone(recipe: Recipe) -> Path:
    """Train only the classifier of icons described by `recipe.backbone`; returns the path of its
    weights.

    Raises:
        DfkdError: as for `make`.
    """
    torch.set_num_threads(recipe.threads)
    icons = pretraining.world(recipe)
    nouns = [
        noun
        for noun in teacher_recipe.common_nouns(icons.rows, recipe.backbone.nouns)
        if noun not in recipe.backbone.without
    ]
    batches = backbone.IconBatches(icons.training, icons.rows, nouns, recipe.seed)
    folder = work_folder.claim(recipe, "backbone")
    network = backbone.BackboneTrainer(recipe.backbone, batches, folder, recipe.seed).run(
        pretraining.log
    )
    validation = teacher_recipe.validation_set(icons.training, icons.validation, nouns)
    accuracy = backbone.accuracy(network, *validation)
    pretraining.log(
        f"{accuracy:.3f} of {len(validation[1])} validation icons named, of {len(nouns)} nouns"
    )
    return backbone.save(
        network, Path(recipe.output) / f"{recipe.backbone.architecture}.safetensors"
    )


def _write_notice(recipe: Recipe, icons: World, output: Path) -> None:
    described = icons.catalogue.collections
    used = pretraining.collections_of([*icons.rows, *icons.validation])
    learned = sorted(used.keys() & described.keys())
    shown = [prefix for group in EVALUATION.values() for prefix in group]
    write_notice(
        [described[p] for p in learned], [described[p] for p in shown], recipe.data.package, output
    )


Scores = Mapping[str, Any]

_INTENT = """\
Two small models of the kinds that the package works with, so that the whole system runs anywhere:
an open_clip teacher (ResNet image tower, transformer text tower, 64 px) and a taming-transformers
VQGAN (64 px). Both learned from openly licensed icons and clip art, painted in some eighty looks:
a caption names the object and tells how it is painted, except for the default look, black on white.
They are made for tests, demonstrations and teaching, and know nothing but drawings."""

_LIMITS = """\
- Drawings only; photographs are outside of what either model has seen.
- Words that no icon set uses as names are unknown to the teacher; English only.
- Domains paint the same held-out drawings in different looks, and a class with few drawings shows
  them several times, in other poses and colours. So the images of a domain are not independent.
- Held-out sets were compared with all training drawings by path data and by a perceptual hash, and
  matches were taken out of training. Simple shapes are alike everywhere; redrawings of the same
  idea by another hand are, rightly, still in."""


def write_scores(scores: Scores, folder: Path) -> Path:
    """Write ``scores.json``; returns its path."""
    path = folder / "scores.json"
    path.write_text(json.dumps(scores, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return path


def write_notice(
    trained: Iterable[Collection], evaluated: Iterable[Collection], package: str, folder: Path
) -> None:
    """Write ``NOTICE``: every collection whose icons were used, with its author and licence."""
    parts = [
        f"The models and images in this folder derive from icon sets of the npm package\n"
        f"{package} (https://iconify.design), all under permissive licences, and from\n"
        f"the Open Clip Art Library (https://openclipart.org), whose drawings are in the public "
        f"domain."
    ]
    for heading, group in (
        ("Learned from, or watched while training (validation):", trained),
        ("Images of these sets are in evaluation.tar (painted, 64 px):", evaluated),
    ):
        lines = [f"- {c.title} ({c.prefix}), {c.author}, {c.licence}, {c.url}" for c in group]
        parts.append("\n".join([heading, *sorted(lines, key=str.lower)]))
    (folder / "NOTICE").write_text("\n\n".join(parts) + "\n", "utf-8")


def write_card(scores: Scores, folder: Path) -> None:
    """Write ``MODEL_CARD.md``; all its numbers come from the scores."""
    sections = [
        ("Miniature teacher and generator", _INTENT),
        ("Data", _data(scores["data"])),
        ("Separation", _separation(scores["data"]["separation"])),
        ("Teacher", _teacher(scores["teacher"])),
        ("Generator", _generator(scores["generator"])),
        ("How they were made", _making(scores)),
        ("Limits", _LIMITS),
    ]
    text = "\n\n".join(
        f"{'#' if i == 0 else '##'} {title}\n\n{body}" for i, (title, body) in enumerate(sections)
    )
    (folder / "MODEL_CARD.md").write_text(text + "\n", "utf-8")


def write_picture(
    pictures: Sequence[EvaluationImage],
    images: Tensor,
    made: Tensor,
    folder: Path,
    columns: int = 16,
) -> None:
    """Write ``reconstructions.png``: for each domain a row of held-out icons above their
    reconstructions.

    Args:
        images, made: originals and reconstructions of ``pictures``, [N, 3, 64, 64] in [0, 1].
    """
    bands = []
    for domain in DOMAINS:
        positions = [i for i, picture in enumerate(pictures) if picture.domain == domain]
        spread = [positions[i * len(positions) // columns] for i in range(columns)]
        bands += [_strip(images[spread]), _strip(made[spread])]
    Image.fromarray(np.concatenate(bands)).save(folder / "reconstructions.png", optimize=True)


def _strip(images: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rows = to_bytes(images).numpy()
    framed: list[np.ndarray[Any, np.dtype[np.uint8]]] = [
        np.pad(row, ((1, 1), (1, 1), (0, 0)), constant_values=210) for row in rows
    ]
    return np.concatenate(framed, axis=1)


def _data(data: Scores) -> str:
    training, evaluation = data["training"], data["evaluation"]
    return (
        f"Icons of the npm package `{data['package']}` and drawings of the Open Clip Art Library "
        f"(Debian's `openclipart-svg`): {training['icons']:,} drawings of "
        f"{training['collections']} collections ({training['in_colour']:,} in colour) under "
        f"{training['names']:,} names. Left out: logos, flags, licences that are not permissive, "
        f"every held-out set and its siblings, and sets reserved for acceptance tests. "
        f"`NOTICE` lists what was used.\n\nThe bundled evaluation set (`evaluation.tar`) has "
        f"{evaluation['images']:,} images of {evaluation['classes']} classes, painted from "
        f"drawings of whole collections and artists that neither model has seen:\n\n"
        + _table(
            ("domain", "drawings", "images"),
            [
                (domain, f"{drawings:,}", f"{images:,}")
                for domain, (drawings, images) in evaluation["per_domain"].items()
            ],
        )
        + "\n\nCollections watched while training, but not learned from (validation): "
        + ", ".join(data["validation"])
        + "."
    )


def _separation(separation: Scores) -> str:
    removed = separation["removed_from_training"]
    return (
        f"All {separation['held_out_icons_compared']:,} held-out drawings were compared with all "
        f"{separation['training_icons_compared']:,} candidates for training. "
        f"{removed.get('path', 0):,} have the same path data, {removed.get('hash', 0):,} more a "
        f"perceptual hash within {separation['max_hash_distance']} bits; all of them were taken "
        f"out of training before it began. Symmetric drawings escape that hash, so the drawings of "
        f"the bundled set were also compared by correlation: "
        f"{separation['bundled_drawings_left_out']:,} that a training drawing equals are not shown."
    )


def _teacher(teacher: Scores) -> str:
    every, official, nouns = (
        teacher["zero_shot"],
        teacher["zero_shot_official"],
        teacher["common_nouns"],
    )
    rows = [
        (d, *(_percent(t["accuracy"][d]) if d in t["accuracy"] else "" for t in (every, official)))
        for d in every["accuracy"]
    ]
    rows += [(key, *(_percent(t[key]) for t in (every, official))) for key in ("mean", "chance")]
    styles = teacher["styles"]
    random = ", ".join(
        f"{name}: cosine {scores['cosine']:.3f}, {_percent(scores['own_class'])} %"
        for name, scores in teacher["random_prompts"].items()
    )
    return (
        f"{teacher['parameters']:,} parameters, {teacher['vocabulary']:,} tokens; "
        f"{teacher['steps']:,} steps, {teacher['images_seen']:,} painted images, "
        f'{teacher["hours"]} hours.\n\nZero-shot accuracy with the prompt "A {{class}}" (%):\n\n'
        + _table(
            (
                "domain",
                f"all {every['classes']} classes",
                f"the {official['classes']} official ones",
            ),
            rows,
        )
        + "\n\nThe official classes: "
        + ", ".join(official["names"])
        + f".\n\nThe {nouns['words']} commonest one-word names, on {nouns['images']:,} icons of "
        f"the validation collections: {_percent(nouns['accuracy'])} % "
        f"(chance {_percent(nouns['chance'])} %).\n\n"
        f"Styles are heard: over {styles['styles']} style words the mean cosine of two prompts is "
        f"{styles['between_styles']:.3f} within a class and {styles['between_classes']:.3f} "
        f"between classes, a ratio of distances of {styles['ratio']:.2f}; two mix prompts of a "
        f"class have {styles['mix']:.3f}. Random prompts (Eq 8-11; mean cosine within a class, and "
        f"the share that stays nearest to its own class): {random}."
    )


def _generator(generator: Scores) -> str:
    psnr, kept = generator["psnr_db"], generator["teacher_kept"]
    before = generator["teacher_on_originals"]["all"]
    after = generator["teacher_on_reconstructions"]["all"]
    rows = [
        (d, f"{psnr[d]}", _percent(before["accuracy"][d]), _percent(share))
        for d, share in after["accuracy"].items()
    ]
    rows.append(("mean", f"{psnr['mean']}", _percent(before["mean"]), _percent(after["mean"])))
    return (
        f"{generator['parameters']:,} parameters ({generator['decoder_parameters']:,} in the "
        f"decoder), {generator['codes']} codes of which the bundled set uses "
        f"{generator['codes_used_by_the_bundled_set']}; {generator['steps']:,} steps, "
        f"{generator['images_seen']:,} images, {generator['hours']} hours.\n\nHeld-out icons "
        f"through the codes and back (`reconstructions.png`; mean absolute error "
        f"{generator['l1']} on [0, 1]):\n\n"
        + _table(
            ("domain", "PSNR, dB", "teacher on originals, %", "teacher on reconstructions, %"), rows
        )
        + f"\n\nThe teacher keeps {_percent(kept['all'])} % of its mean accuracy over all classes "
        f"(this table) and {_percent(kept['official'])} % of that over the official ones. "
        f"Hue is off by {generator['hue_error_degrees']} degrees (mean over twelve sectors), and "
        f"{_percent(generator['chroma_kept'])} % of the chroma survives."
    )


def _making(scores: Scores) -> str:
    machine = scores["machine"]
    files = _table(
        ("file", "bytes", "sha256"),
        [
            (name, f"{f['bytes']:,}", f"`{f['sha256'][:16]}…`")
            for name, f in scores["files"].items()
        ],
    )
    note = f"\n\n{scores['note']}" if scores["note"] else ""
    return (
        f"`{scores['command']}` on {machine['processor']} ({machine['processors']} cores, no GPU), "
        f"torch {machine['torch']}, seed {scores['seed']}, scored {machine['date']}. This card, "
        f"`scores.json` and `NOTICE` are written by the job.{note}\n\n{files}"
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
