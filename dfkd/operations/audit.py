"""A few images of each class, and whether the run that would follow is worth its time.

A run with few classes tells them apart although its pictures show none of them: the nearest of ten
texts says little. So an image is also compared with the texts of common nouns. The rule, for each
class, with `named` the share of its images whose nearest text of all, of classes and of common
nouns, is its own:

    recognised   named >= NAMED
    rename       else, if one other name is the nearest of at least SAME of its images: they agree
                 on what they show, so the name may mean that to the generator, or be a near synonym
    not drawn    else: the images show many things, or nothing that has a name

NAMED was chosen on one half of the nouns of manifests/studies/audit, which reports on the other.
SAME is a majority; the miniature has no names with two meanings to choose it on.
"""

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dfkd.cluster.connection import connected
from dfkd.cluster.making import build, identify, is_published
from dfkd.config.manifest import Manifest
from dfkd.config.plan import AUDIT_IMAGES, image_count
from dfkd.dataset.published import PublishedVersion
from dfkd.distillation.label_moments import BATCH
from dfkd.distillation.labels import load_labeller
from dfkd.distillation.objective import MIN_STD
from dfkd.models.labeller import class_prompt, distances
from dfkd.operations.common_nouns import COMMON_NOUNS
from dfkd.operations.preflight import check_synthesis, check_towers, note_surprises
from dfkd.prompts.diversity import pair_cosines, vendi_score
from dfkd.report.gallery import data_uri
from dfkd.report.page import template
from dfkd.storage import cost_records, layout
from dfkd.storage.base import Storage
from dfkd.storage.local import open_storage, require_no_link
from dfkd.utils.device import pick_device
from dfkd.utils.images import decode_image
from dfkd.utils.pixels import from_bytes
from dfkd.utils.strict_json import indented

NAMED = 0.625
"""Least share of a class's images whose nearest text of all is its own."""
SAME = 0.5
"""Least share of a class's images that one other name must be nearest to."""

Floats = npt.NDArray[np.floating[Any]]


def small(manifest: Manifest, images: int) -> Manifest:
    """The run of the last method with a few images a class, in a root of its own."""
    count = min(images, manifest.synthesis.images_per_class)
    size = min(count, manifest.synthesis.shard_size)
    return manifest.with_method(manifest.methods[-1]).with_values(
        storage={"root": f"{manifest.storage.root.rstrip('/')}/{layout.AUDIT}"},
        synthesis={
            "images_per_class": count,
            "shard_size": size,
            "batch_size": min(size, manifest.synthesis.batch_size),
        },
    )


def audit(manifest: Manifest, images: int = AUDIT_IMAGES) -> dict[str, Any]:
    """Make a few images of each class unless they are there, judge them, and write the page.

    Returns:
        The content of `audit.json`: `classes` (`judge`, the worst first), `hours` of synthesis of
        the whole run at the measured speed (None if nothing was measured), `workers`,
        `images_per_second`, and the version of the images.

    Raises:
        ManifestError: weights, names or sizes do not fit; nothing has been started.
        CorruptionError: a link is in place of the audit's folder.
        PartialError: not one image could be made.
        InfrastructureError: as `build`; the same call resumes.
    """
    few = small(manifest, images)
    require_no_link(manifest.storage.root, layout.AUDIT)
    teacher, _ = check_synthesis(few)
    check_towers(few)
    note_surprises(few, teacher)
    identity = identify(few)
    with ExitStack() as ray_runtime:
        if not is_published(few, identity):
            ray_runtime.enter_context(connected())
        # What another manifest has left unfinished there is of no use to this one, and fewer images
        # do too.
        version = build(few, identity, abandon=True, accept_partial=True).version
    labels, stored, pictures, pixels = read_images(version)
    nouns = references((*manifest.classes, *manifest.meanings))
    views = []
    for config in manifest.labellers.values():
        labeller = load_labeller(manifest, config, pick_device())
        words = (*manifest.meanings, *nouns)
        texts = labeller.encode_text([class_prompt(config.template, each) for each in words])
        if manifest.distillation.labelled_by_teacher:
            embeddings = torch.from_numpy(stored).to(texts.device)
        else:
            with torch.inference_mode():
                rows = [
                    labeller.encode_image(from_bytes(chunk.to(texts.device)).contiguous())
                    for chunk in pixels.split(BATCH)
                ]
            embeddings = torch.cat(rows)
        far = distances(embeddings, texts)
        # Several are weighed as for a student: the mean of their standardised distances.
        views.append((embeddings, texts, far / far.std(correction=0).clamp_min(MIN_STD)))
    together = torch.stack([each for _, _, each in views]).sum(dim=0).cpu().numpy()
    # Likeness and diversity are those of the first one's embeddings.
    vectors, words_of = (each.cpu().numpy() for each in views[0][:2])
    root = open_storage(few.storage.root)
    found = {
        "schema": 1,
        "name": manifest.name,
        "method": few.method,
        "version": version.id,
        "classes": judge(manifest.classes, nouns, words_of, vectors, together, labels),
        **_time(root, few.method, image_count(manifest) * len(manifest.methods)),
    }
    root.put("audit.json", indented(found))
    rows = together.argmin(axis=1)
    names = [*manifest.classes, *nouns]
    taken = [names[row] for row in rows]
    shown = {
        name: [
            (uri, text, taken[i])
            for i, (uri, text) in enumerate(pictures)
            if manifest.classes[labels[i]] == name
        ]
        for name in manifest.classes
    }
    write_page(root, found, shown, len(nouns))
    return found


def write_page(
    root: Storage, found: dict[str, Any], shown: dict[str, list[tuple[str, str, str]]], nouns: int
) -> None:
    """Write `audit.html`.

    Args:
        found: the content of `audit.json`.
        shown: for each class its pictures as URIs, their prompts, and what they are taken for.
        nouns: the number of common nouns that the pictures were compared with.
    """
    text = template("audit.html.jinja").render(
        title=f"{found['name']}: audit",
        sections=[("classes", "Classes")],
        found=found,
        shown=shown,
        answer=answer(found["classes"]),
        named=NAMED,
        same=SAME,
        nouns=nouns,
    )
    root.put("audit.html", text.encode())


def read_images(
    version: PublishedVersion,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], list[tuple[str, str]], torch.Tensor]:
    """Class indices [N], unit embeddings [N, E] of the teacher, pictures as URIs with their
    prompts, and as uint8 [N, S, S, 3].
    """
    embeddings, labels, pictures, pixels = [], [], [], []
    size = int(version.facts["identity"]["synthesis.image_size"])
    for receipt in version.receipts():
        for sample in version.samples(receipt):
            vector = sample.arrays["embedding"].astype(np.float32)
            embeddings.append(vector / max(float(np.linalg.norm(vector)), 1e-12))
            labels.append(sample.metadata["class_index"])
            pictures.append((sample.decoded(data_uri), sample.metadata["prompt"]))
            pixels.append(sample.decoded(lambda image: decode_image(image, size)))
    images = torch.from_numpy(np.stack(pixels))
    return np.array(labels, np.int64), np.array(embeddings), pictures, images


def references(texts: Sequence[str]) -> list[str]:
    """The common nouns that share no word with the names and meanings of classes."""
    words = {word for name in texts for word in re.findall(r"\w+", name.lower())}
    return [noun for noun in COMMON_NOUNS if noun not in words]


def judge(
    classes: Sequence[str],
    nouns: Sequence[str],
    texts: Floats,
    embeddings: Floats,
    distances: Floats,
    labels: npt.NDArray[np.int64],
) -> list[dict[str, Any]]:
    """What the images of each class show; the worst class first.

    Args:
        texts: unit vectors of the classes and, behind them, of the nouns.
        embeddings: unit vectors [N, E] of the images.
        distances: of each image [N, M] to the texts, as the labellers see them.
        labels: the class [N] of each image.

    Returns:
        For each class: `name`; `verdict` ("recognised", "rename" or "not drawn") by the rule above;
        `images`; shares `named` and `recognised` (the latter among the classes alone); `taken_for`,
        the other names and how many images each; the class with the `nearest_text` and the one with
        the `nearest_images` with their cosines; the mean `cosine` of its images and their `vendi`
        score, both None for fewer than two images.
    """
    names, count = [*classes, *nouns], len(classes)
    means = np.zeros((count, texts.shape[1]))
    for c in range(count):
        if (labels == c).any():
            mean = embeddings[labels == c].mean(axis=0)
            means[c] = mean / np.linalg.norm(mean)
    text_cosines, image_cosines = texts[:count] @ texts[:count].T, means @ means.T
    rows = []
    for c, name in enumerate(classes):
        own = embeddings[labels == c]
        far = distances[labels == c]
        nearest = far.argmin(axis=1)
        others = Counter(names[i] for i in nearest.tolist() if i != c)
        named = float((nearest == c).mean()) if len(own) else 0.0
        alike = {}
        for key, table in (("nearest_text", text_cosines), ("nearest_images", image_cosines)):
            other = max((i for i in range(count) if i != c), key=lambda i: table[c, i])
            alike[key] = {"name": classes[other], "cosine": round(float(table[c, other]), 4)}
        several = len(own) > 1
        rows.append(
            {
                "name": name,
                "verdict": verdict(named, list(others.values()), len(own)),
                "images": len(own),
                "named": named,
                "recognised": float((far[:, :count].argmin(axis=1) == c).mean())
                if len(own)
                else 0.0,
                "taken_for": dict(others.most_common()),
                **alike,
                "cosine": float(pair_cosines(own, labels[labels == c])[0].mean())
                if several
                else None,
                "vendi": vendi_score(own) if several else None,
            }
        )
    return sorted(rows, key=lambda row: (row["named"], row["recognised"]))


def verdict(named: float, others: Sequence[int], images: int) -> str:
    """The rule at the top of this file.

    Args:
        named: share of the class's images whose nearest text of all is its own.
        others: for each other name, the images that it is the nearest of.
    """
    if named >= NAMED and images:
        return "recognised"
    return "rename" if max(others, default=0) >= SAME * max(images, 1) else "not drawn"


def _time(root: Storage, method: str, images: int) -> dict[str, Any]:
    """Hours of synthesis of so many images, at the speed of all calls that made the audit's.

    Prompts and the start of workers are in it, which weigh more in a few images than in many, so
    a long run is faster.
    """
    entries = [
        each
        for each in cost_records.read(root)
        if (each.stage, each.method) == ("synthesize", method) and each.images
    ]
    made = sum(each.images for each in entries)
    spent = sum(each.worker_seconds for each in entries)
    if not spent:
        return {"images": images, "images_per_second": None, "workers": None, "hours": None}
    workers = entries[-1].workers
    speed = made / spent * workers
    return {
        "images": images,
        "images_per_second": round(speed, 3),
        "workers": workers,
        "hours": round(images / speed / 3600, 6),
    }


def answer(classes: Sequence[dict[str, Any]], command: str = "dfkd pipeline") -> str:
    """The sentence that ends an audit."""
    wrong = [row for row in classes if row["verdict"] == "rename"]
    undrawn = [row["name"] for row in classes if row["verdict"] == "not drawn"]
    parts = []
    if undrawn:
        parts.append(
            f"this generator cannot draw {', '.join(undrawn)}: drop them or take another generator"
        )
    if wrong:
        told = [f"{row['name']} (taken for {next(iter(row['taken_for']))})" for row in wrong]
        example = "classes: [{name: crane, prompt: 'crane, a wading bird'}]"
        parts.append(f"rename {', '.join(told)}, or say what is meant, as in {example}")
    return "; ".join(parts) or f"go on: {command}"
