"""The model card, and the notice of the icon sets that were used."""

import json
import statistics
from pathlib import Path

from dfkd.miniature import pretraining
from dfkd.miniature.drawings.icons import EVALUATION
from dfkd.miniature.pretraining import DataSplit
from dfkd.miniature.recipe import Recipe
from dfkd.miniature.scoring import Scores
from dfkd.utils.markdown import table

_INTENT = """\
Small models of the kinds that the package works with, so that the whole system runs anywhere: an
open_clip teacher (ResNet image tower, transformer text tower, 64 px), a taming-transformers VQGAN
(64 px), a latent diffusion model in diffusers' layout, and a backbone that students start from.
They learned from openly licensed icons and clip art, painted in some eighty looks: a caption names
the object and tells how it is painted, except for the default look, black on white. They are made
for tests, demonstrations and teaching, and know nothing but drawings."""

_LIMITS = """\
- Drawings only: no model has seen photographs.
- English only, and the teacher does not know words that no icon set uses as names.
- Domains paint the same held-out drawings in different looks, and a class with few drawings shows
  them several times, in other poses and colours. So the images of a domain are not independent.
- Held-out sets were compared with all training drawings by path data and by a perceptual hash, and
  matches were taken out of training. Other drawings of the same object, which may be much alike if
  its shape is simple, are still in training."""


def write(folder: Path) -> None:
    """Write `MODEL_CARD.md`; all its numbers come from the scores in the same folder."""
    scores, diffusion = (
        json.loads((folder / name).read_text("utf-8"))
        for name in ("scores.json", "diffusion/scores.json")
    )
    sections = [
        ("Miniature models", _INTENT),
        ("Data", _data(scores["data"])),
        ("Separation", _separation(scores["data"]["separation"])),
        ("Teacher", _teacher(scores["teacher"])),
        ("Generator", _generator(scores["generator"])),
        ("Diffusion model", _diffusion(diffusion)),
        ("Backbone", _backbone(scores["backbone"])),
        ("How they were made", _provenance(scores, diffusion)),
        ("Limits", _LIMITS),
    ]
    text = "\n\n".join(
        f"{'#' if i == 0 else '##'} {title}\n\n{body}" for i, (title, body) in enumerate(sections)
    )
    (folder / "MODEL_CARD.md").write_text(text + "\n", "utf-8")


def write_notice(recipe: Recipe, split: DataSplit, folder: Path) -> None:
    """Write `NOTICE`: every collection whose icons were used, with its author and licence."""
    described = split.catalogue.collections
    # Clip art is a collection of rows too, but none of the package.
    used = pretraining.collections_of([*split.rows, *split.validation]).keys() & described.keys()
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


def _data(data: Scores) -> str:
    """The section of the card that says which drawings were used."""
    training, evaluation = data["training"], data["evaluation"]
    return (
        f"Icons of the npm package `{data['package']}` and drawings of the Open Clip Art Library "
        f"(Debian's `openclipart-svg`): {training['icons']:,} drawings of "
        f"{training['collections']} collections ({training['in_colour']:,} in colour) under "
        f"{training['names']:,} names. Left out: logos, flags, licences that are not permissive, "
        f"every held-out set and its siblings, and sets reserved for acceptance tests. "
        f"`NOTICE` lists what was used.\n\nThe bundled evaluation set (`evaluation.tar`) has "
        f"{evaluation['images']:,} images of {evaluation['classes']} classes, painted from "
        f"drawings of whole collections and artists that no model was trained on:\n\n"
        + table(
            ("domain", "drawings", "images"),
            [
                (domain, f"{drawings:,}", f"{images:,}")
                for domain, (drawings, images) in evaluation["per_domain"].items()
            ],
        )
        + "\n\nCollections that were only used for validation: "
        + ", ".join(data["validation"])
        + "."
    )


def _separation(separation: Scores) -> str:
    """The section of the card that says how held-out drawings were kept apart."""
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
    """The section of the card on the teacher's scores."""
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
    heads = (
        "domain",
        f"all {every['classes']} classes",
        f"the {official['classes']} official ones",
    )
    styles = teacher["styles"]
    random = ", ".join(
        f"{name}: cosine {scores['cosine']:.3f}, {_percent(scores['own_class'])} %"
        for name, scores in teacher["random_prompts"].items()
    )
    return (
        _teacher_training(teacher)
        + 'Zero-shot accuracy with the prompt "A {class}" (%), on the images before their WebP '
        "compression in `evaluation.tar` (other pages: after it):\n\n"
        + table(heads, rows)
        + "\n\nOf the official classes, the mean leaves out domains that lack one."
        + "\n\nThe official classes: "
        + ", ".join(official["names"])
        + f".\n\nThe {nouns['words']} commonest one-word names, on {nouns['images']:,} icons of "
        f"the validation collections: {_percent(nouns['accuracy'])} % "
        f"(chance {_percent(nouns['chance'])} %).\n\n"
        f"Over {styles['styles']} style words the mean cosine of two prompts is "
        f"{styles['between_styles']:.3f} within a class and {styles['between_classes']:.3f} "
        f"between classes, a ratio of distances of {styles['ratio']:.2f}; two mix prompts of a "
        f"class have {styles['mix']:.3f}. Random prompts (Eq 8-11; mean cosine within a class, and "
        f"the share that stays nearest to its own class): {random}."
    )


def _teacher_training(teacher: Scores) -> str:
    """The paragraph of the card on the teacher's two trainings."""
    first, second = teacher["first"], teacher["second"]
    return (
        f"{teacher['parameters']:,} parameters, {teacher['vocabulary']:,} tokens. Both towers: "
        f"{first['steps']:,} steps, {first['images_seen']:,} painted images, {first['hours']} "
        f"hours. Then the image tower alone, with the text tower locked: {second['steps']:,} "
        f"steps, {second['images_seen']:,} images, {second['hours']} hours; "
        f"{100 * second['class_share']:.0f} % of these show the classes of the evaluation set, in "
        f"training drawings and training looks. So zero-shot means here: drawings that were never "
        f"seen, in four of the domains also looks that were never seen, of classes that were seen "
        f"often.\n\n"
    )


def _generator(generator: Scores) -> str:
    """The section of the card on the generator's scores."""
    psnr, kept = generator["psnr_db"], generator["teacher_kept"]
    before = generator["teacher_on_originals"]["all"]
    after = generator["teacher_on_reconstructions"]["all"]
    rows = [
        (d, f"{psnr[d]}", _percent(before["accuracy"][d]), _percent(share))
        for d, share in after["accuracy"].items()
    ]
    mean = statistics.fmean(psnr[domain] for domain in after["accuracy"])
    rows.append(("mean", f"{mean:.2f}", _percent(before["mean"]), _percent(after["mean"])))
    return (
        f"{generator['parameters']:,} parameters ({generator['decoder_parameters']:,} in the "
        f"decoder), {generator['codes']} codes of which the bundled set uses "
        f"{generator['codes_used_by_the_bundled_set']}; {generator['steps']:,} steps, "
        f"{generator['images_seen']:,} images, {generator['hours']} hours.\n\nHeld-out icons "
        f"through the codes and back (`reconstructions.png`; mean absolute error "
        f"{generator['l1']} on [0, 1]):\n\n"
        + table(
            ("domain", "PSNR, dB", "teacher on originals, %", "teacher on reconstructions, %"), rows
        )
        + f"\n\nThe teacher keeps {_percent(kept['all'])} % of its mean accuracy over all classes "
        f"(this table) and {_percent(kept['official'])} % of that over the official ones. "
        f"Hue is off by {generator['hue_error_degrees']} degrees (mean over twelve sectors), and "
        f"{_percent(generator['chroma_kept'])} % of the chroma survives."
    )


def _diffusion(diffusion: Scores) -> str:
    """The section of the card on the diffusion model's scores."""
    means = {
        kind: sum(named[kind] for named in diffusion["teacher"].values())
        / len(diffusion["teacher"])
        for kind in ("plain", "styled")
    }
    return (
        f"{diffusion['parameters']:,} parameters in the UNet, which makes latents of the generator "
        f"(v-prediction, conditioned on the hidden states of the teacher's text tower); trained on "
        f"drawings of {len(diffusion['names'])} names, those of the evaluation set's classes: "
        f"{diffusion['steps']:,} steps, {diffusion['images_seen']:,} images, {diffusion['hours']} "
        f"hours. With {diffusion['sampling_steps']} sampling steps and guidance "
        f"{diffusion['guidance']:g}, the teacher names {_percent(means['plain'])} % of the images "
        f'of "A {{class}}" and {_percent(means["styled"])} % of those with styles '
        f"({diffusion['images']} images in all, `diffusion/samples.png`: in each row eight without "
        f"and eight with styles).\n\nIt draws {', '.join(diffusion['names'])}."
    )


def _backbone(backbone: Scores) -> str:
    """The section of the card on the backbone's scores."""
    return (
        f"The weights of a `{backbone['architecture']}` with a head, {backbone['parameters']:,} "
        f"parameters, which stand for the ImageNet weights of a student. It learned to name "
        f"{backbone['classes']} of the most frequent nouns without the official classes, from "
        f"{backbone['images_seen']:,} painted images in {backbone['steps']:,} steps; "
        f"{_percent(backbone['default_share'])} % of the drawings in one ink were in the default "
        f"look, as ImageNet's images are photographs. It names {_percent(backbone['accuracy'])} % "
        f"of {backbone['images']:,} icons of the validation collections."
    )


def _provenance(scores: Scores, diffusion: Scores) -> str:
    """The section of the card on the command, the machine and the files."""
    machine = scores["machine"]
    files = table(
        ("file", "bytes", "sha256"),
        [
            (name, f"{f['bytes']:,}", f"`{f['sha256'][:16]}…`")
            for name, f in (scores["files"] | diffusion["files"]).items()
        ],
    )
    return (
        f"`{scores['command']}` on {machine['processor']} ({machine['processors']} cores, no GPU), "
        f"torch {machine['torch']}, seed {scores['seed']}, scored {machine['date']}; the diffusion "
        f"model with `{diffusion['command']}`, scored {diffusion['machine']['date']}. This card, "
        f"`scores.json` and `NOTICE` are written by the job.\n\n{files}"
    )


def _percent(share: float) -> str:
    """A share in per cent, with one digit after the point."""
    return f"{100 * share:.1f}"
