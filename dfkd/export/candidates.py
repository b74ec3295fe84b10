"""Export every candidate of a run, and score and time each as exported: `candidates.json`.

A candidate is what one could ship: a student, an image tower with its class prompts (`zero-shot`),
or a tower with a classifier that is trained only on texts (`text-only`). Its folder is
`candidates/{name}/`, as `folder.py` describes it, of its first seed. All seeds are scored.

`candidates.json` (schema 1), which `choice.py` reads:

    measure     "accuracy" on labelled images; or "agreement", where there are none: the share of
                synthesised images, from which nothing has learned, on which a candidate gives the
                labeller's answer
    average     "images" or "classes": how accuracy on a domain is averaged
    source      where these images are from, for display
    images      {domain: number}
    machine     whose core was timed; gpu: the GPU that was timed, or null
    candidates  one for each: name, kind ("tower" or "student"), classifier ("zero-shot",
                "text-only" or "distilled"), model, folder, images (synthesised ones that it
                needed), seeds, students (folders under students/ by seed), parameters, image_size,
                gpu_ms, and files: for "float32" and "int8" the file, its bytes, ms on one core,
                means (over domains, 0-1, for each seed) and domains {name: [for each seed]}
"""

import contextlib
import copy
import dataclasses
import math
import re
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dfkd.cluster.connection import connected
from dfkd.cluster.making import build, identify, is_published
from dfkd.config.manifest import Manifest
from dfkd.config.plan import HELD_OUT_SALT, image_count
from dfkd.dataset.published import PublishedVersion
from dfkd.distillation.label_moments import BATCH, measure
from dfkd.distillation.labels import Ensemble, load_ensemble
from dfkd.distillation.student_names import labellers_identity, weights_identity
from dfkd.distillation.student_store import StudentLocation, load_located, locate_candidates
from dfkd.distillation.text_only import class_vectors
from dfkd.errors import ManifestError, as_utf8
from dfkd.evaluation.data import Domains, Item, open_data
from dfkd.evaluation.results import accuracy_of, row
from dfkd.evaluation.scoring import Classifier, confusions, parameters
from dfkd.export.folder import Network, publish, write_graphs
from dfkd.export.onnx_graphs import load_graph
from dfkd.export.predict import INT8, MODEL, WEIGHTS
from dfkd.export.predict import distances as class_distances
from dfkd.models.labeller import Labeller, class_prompt, file_hashes
from dfkd.models.teacher import Teacher
from dfkd.models.tower import TowerClassifier
from dfkd.storage import layout
from dfkd.storage.base import Storage
from dfkd.storage.local import open_storage, require_no_link
from dfkd.utils.device import pick_device
from dfkd.utils.hardware import time_on_gpu, time_on_one_core
from dfkd.utils.images import USUAL, decode_image
from dfkd.utils.pixels import from_bytes
from dfkd.utils.progress import say
from dfkd.utils.strict_json import indented

FILES = {"float32": MODEL, "int8": INT8}
"""The two files of a candidate, by precision."""
HELD_OUT_SHARE, HELD_OUT_IMAGES = 0.1, 2000
"""Without labelled images so many more are synthesised, and about so many at most."""


@dataclass(frozen=True)
class Candidate:
    """A model that could be shipped, of one seed."""

    name: str
    about: Mapping[str, Any]
    """What `candidates.json` says of it: kind, classifier, model and images."""
    seed: int | None
    """None for a tower with class prompts, which is not trained."""
    origin: Mapping[str, Any]
    """Where it comes from, for its card."""
    network: Network
    student: str = ""
    """The folder of the student, under students/."""


@dataclass
class Exported:
    """The graphs of a candidate in a local folder, and what was measured of them."""

    candidate: Candidate
    folder: Path
    facts: dict[str, Any]
    gpu_ms: float | None = None
    accuracies: dict[str, dict[str, float]] = field(default_factory=dict)
    """By precision and domain, 0-1."""


def write_candidates(manifest: Manifest, threads: int) -> str:
    """Export, time and score every candidate of a manifest; returns where `candidates.json` is.

    Args:
        manifest: of a run whose students are finished.
        threads: threads for scoring; the timing uses one core.

    Raises:
        ManifestError: nothing is published, or a student is not finished.
        CorruptionError: a student or a data set is missing or damaged.
        PartialError: without labelled images, not one image to compare on could be made.
    """
    root, shipped = open_storage(manifest.storage.root), manifest.distillation.seeds[0]
    students = locate_candidates(manifest)
    with tempfile.TemporaryDirectory() as name:
        exported = [
            _export(candidate, Path(name), students[0].version, manifest)
            for candidate in candidates(manifest, root, students)
        ]
        scored, _ = score(manifest, exported, students[0].version, threads)
        timed = _time([each for each in exported if each.candidate.seed in (None, shipped)])
        gpu = torch.cuda.get_device_name() if pick_device().type == "cuda" else None
        entries = []
        for _, same in groupby(exported, lambda each: each.candidate.name):
            seeds = list(same)
            entry = _entry(seeds, timed["ms"])
            facts = {
                **seeds[0].facts,
                "latency": {key: timed[key] for key in ("machine", "runs", "threads", "batch")},
                "scored": scored,
                "measured": entry,
            }
            publish(seeds[0].folder, facts, root.child(entry["folder"]))
            entries.append(entry)
    content = {"schema": 1, **scored, "machine": timed["machine"], "gpu": gpu}
    root.put(layout.CANDIDATES, indented({**content, "candidates": entries}))
    return root.location(layout.CANDIDATES)


def score_student(
    manifest: Manifest, architecture: str, version: str, threads: int
) -> tuple[dict[str, list[float]], list[str]]:
    """Score both files of a student as exported.

    Args:
        architecture: one of `distillation.student`.
        version: id of the published version that it learned from.

    Returns:
        The mean accuracy over domains (0-1) by precision, for each seed; and the images that could
        not be read.

    Raises:
        ManifestError, CorruptionError: as `write_candidates`.
    """
    single = manifest.with_student(architecture)
    students = locate_candidates(single, version)
    temperature = _labellers(single, students[0].version).temperature
    with tempfile.TemporaryDirectory() as name:
        exported = [
            _export(_student(single, each, temperature), Path(name), each.version, single)
            for each in students
        ]
        _, unreadable = score(single, exported, students[0].version, threads)
    means = {
        precision: [statistics.fmean(each.accuracies[precision].values()) for each in exported]
        for precision in FILES
    }
    return means, unreadable


def _labellers(manifest: Manifest, version: PublishedVersion) -> Ensemble:
    """The models that labelled the version for its students, with the class prompts."""
    device, root = pick_device(), open_storage(manifest.storage.root)
    weights: Sequence[float] = (1.0,)
    if len(manifest.labellers) > 1:
        weights = measure(manifest, version, root, device).weights
    return load_ensemble(manifest, device, weights, plain=True)


def folder_of(name: str) -> str:
    """The folder of a candidate, relative to the root."""
    return f"{layout.CANDIDATE_FOLDERS}{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('.-')}"


def candidates(
    manifest: Manifest, root: Storage, students: Sequence[StudentLocation]
) -> Iterator[Candidate]:
    """Yield each candidate and seed, so that few are in memory at a time; towers come first.

    Text-only classifiers are trained unless they are stored.
    """
    device, classes = pick_device(), manifest.classes
    # The text-only classifier needs token embeddings.
    load = Teacher.load if "text-only" in manifest.candidates.classifiers else Labeller.load
    for name, config in manifest.towers.items():
        tower: Any = load(config, device, cache=manifest.cache)
        origin = {"model": config.model, "weights": file_hashes(config, manifest.cache)}
        for classifier in manifest.candidates.classifiers:
            texts = classifier == "text-only"
            for seed in manifest.distillation.seeds if texts else (None,):
                if seed is None:
                    prompts = [class_prompt(config.template, each) for each in manifest.meanings]
                    vectors = tower.encode_text(prompts)
                else:
                    vectors = class_vectors(manifest, config, tower, seed, root)
                yield Candidate(
                    f"{name} text-only" if texts else name,
                    {
                        "kind": "tower",
                        "classifier": classifier,
                        "model": config.model,
                        "images": 0,
                        "image_size": tower.image_size,
                    },
                    seed,
                    {"data": origin},
                    Network(
                        TowerClassifier(tower, vectors),
                        classes,
                        None,
                        tower.image_size,
                        tower.resizing,
                        1 / tower.logit_scale,
                    ),
                )
    temperature = _labellers(manifest, students[0].version).temperature
    for location in students:
        yield _student(manifest, location, temperature)


def _student(manifest: Manifest, location: StudentLocation, temperature: float) -> Candidate:
    """The candidate that is a student; `ManifestError` if it is not finished."""
    if not location.finished:
        rule = f"must be finished to be exported: {location.location} is missing"
        remedy = "run dfkd distill with this manifest first"
        raise ManifestError("distillation.student", rule, location.architecture, remedy)
    student, card = load_located(location, manifest.classes, torch.device("cpu"))
    single, version = manifest.with_student(location.architecture), location.version
    embedding = {key: card[key] for key in ("target", "embedding_dim") if key in card}
    images = version.facts["samples"]
    return Candidate(
        location.architecture,
        {
            "kind": "student",
            "classifier": "distilled",
            "model": location.architecture,
            "images": images,
            "image_size": card["image_size"],
        },
        location.seed,
        {
            "student": {
                "folder": location.name,
                "method": location.method,
                "seed": location.seed,
                "sha256": card["sha256"],
                "weights": weights_identity(single.distillation.initial_weights),
                **embedding,
            },
            "teacher": manifest.teacher.model,
            "labellers": _labelled_by(manifest, version),
            "data": {
                "version": version.id,
                "fingerprint": version.fingerprint,
                "images": images,
                "weights": version.facts["weights"],
            },
        },
        Network(
            student.with_classes(None),
            manifest.classes,
            student.texts,
            card["image_size"],
            USUAL,
            temperature,
        ),
        location.name,
    )


def _labelled_by(manifest: Manifest, version: PublishedVersion) -> list[dict[str, str]]:
    """Model, template and sha256 of the weights of each labeller."""
    found = []
    # Read once, however many students there are.
    identities = labellers_identity(manifest)
    for config, files in zip(manifest.labellers.values(), identities, strict=True):
        own = config == manifest.teacher
        digest = version.facts["weights"][WEIGHTS] if own else files[WEIGHTS]
        found.append({"model": config.model, "template": config.template, "sha256": digest})
    return found


def _export(
    candidate: Candidate, place: Path, version: PublishedVersion, manifest: Manifest
) -> Exported:
    """Write the graphs of a candidate into a folder of its own under `place`."""
    seed = "" if candidate.seed is None else f" seed {candidate.seed}"
    say(f"exports {candidate.name}{seed}")
    folder = place / f"{folder_of(candidate.name)}{seed}"
    folder.mkdir(parents=True)
    facts = {
        "name": manifest.name,
        "candidate": candidate.name,
        "classes": len(manifest.classes),
        **candidate.about,
        **candidate.origin,
        **write_graphs(candidate.network, folder, version),
        "parameters": parameters(candidate.network.module),
    }
    module, size = candidate.network.module, candidate.network.image_size
    gpu_ms = None
    # The other seeds of a candidate are as fast.
    shipped = candidate.seed in (None, manifest.distillation.seeds[0])
    if shipped and pick_device().type == "cuda":
        on_gpu = copy.deepcopy(module).to("cuda")
        pixels = torch.rand(1, 3, size, size).to("cuda")
        with torch.inference_mode():
            gpu_ms = time_on_gpu(partial(on_gpu, pixels))
    # The graphs hold everything, and the networks of many candidates would fill the memory.
    bare = dataclasses.replace(
        candidate, network=dataclasses.replace(candidate.network, module=nn.Identity())
    )
    return Exported(bare, folder, facts, gpu_ms)


def _time(exported: Sequence[Exported]) -> dict[str, Any]:
    """Milliseconds of both files of each candidate for one image on one core."""
    draw, calls = torch.Generator().manual_seed(0), {}
    for each in exported:
        size = each.candidate.network.image_size
        pixels = torch.rand(1, 3, size, size, generator=draw).numpy()
        for precision, file in FILES.items():
            graph = load_graph(each.folder / file, 1)
            calls[each.candidate.name, precision] = partial(graph, pixels)
    return time_on_one_core(calls)


def score(
    manifest: Manifest, exported: Sequence[Exported], learned: PublishedVersion, threads: int
) -> tuple[dict[str, Any], list[str]]:
    """Score both files of each candidate; sets `accuracies` of each.

    Args:
        learned: as for `held_out`.

    Returns:
        What `candidates.json` says of the images, and those that could not be read.

    Raises:
        DfkdError: no image can be read.
    """
    labelled = manifest.evaluation.scored
    if labelled:
        data = open_data(manifest.evaluation, manifest.classes)
    else:
        data = held_out(manifest, learned)
    # Those that take the same pixels follow each other, so that an image is decoded once.
    ordered = sorted(
        exported,
        key=lambda each: (
            each.candidate.network.image_size,
            each.candidate.network.resizing,
        ),
    )
    pairs = [(each, precision) for each in ordered for precision in FILES]
    classifiers = (_classifier(each, precision, threads) for each, precision in pairs)
    unreadable: dict[str, str] = {}
    average = manifest.evaluation.average if labelled else "images"
    for (each, precision), (_, counts) in zip(
        pairs, confusions(classifiers, data, threads, unreadable), strict=True
    ):
        each.accuracies[precision] = {
            domain: accuracy_of(row("student", "", 0, domain, data.classes, found), average)
            for domain, found in counts.items()
            if found.any()
        }
    images = Counter(item.domain for item in data.items if as_utf8(item.name) not in unreadable)
    content = {
        "measure": "accuracy" if labelled else "agreement",
        "average": average,
        "source": data.source,
        "classes": len(manifest.classes),
        "images": {domain: images[domain] for domain in data.names if images[domain]},
    }
    return content, [f"{name}: {reason}" for name, reason in sorted(unreadable.items())]


def _classifier(exported: Exported, precision: str, threads: int) -> Classifier:
    """A file of a candidate as what can be scored."""
    candidate, network = exported.candidate, exported.candidate.network
    graph = load_graph(exported.folder / FILES[precision], threads)
    texts = None if network.texts is None else network.texts.numpy()

    def distances(pixels: Tensor) -> Tensor:
        output = graph(pixels.numpy())
        return torch.from_numpy(output if texts is None else class_distances(output, texts))

    return Classifier(
        "student" if candidate.student else "teacher",
        f"{candidate.name} {precision}",
        candidate.seed or 0,
        network.image_size,
        distances,
        torch.device("cpu"),
        exported.facts["parameters"],
        network.resizing,
    )


def held_out(manifest: Manifest, learned: PublishedVersion) -> Domains:
    """Synthesised images that nothing has learned from, with the labellers' answers as classes.

    They are a small version of the last method's data set with another salt, which is made unless
    it is there. It has a root of its own, because no other job must resume or remove it.

    Args:
        learned: the version that the students learned from, which weighs several labellers.

    Raises:
        CorruptionError: a link is in place of its folder.
        PartialError: not one image could be made.
        InfrastructureError: as `build`; the same call resumes.
    """
    config = manifest.synthesis
    shards = math.ceil(HELD_OUT_SHARE * config.images_per_class / config.shard_size)
    most = max(1, HELD_OUT_IMAGES // len(manifest.classes))
    count = min(config.images_per_class, config.shard_size * shards, most)
    require_no_link(manifest.storage.root, layout.HELD_OUT)
    root = f"{manifest.storage.root.rstrip('/')}/{layout.HELD_OUT}"
    small = manifest.with_method(manifest.methods[-1]).with_values(
        storage={"root": root},
        synthesis={
            "images_per_class": count,
            "shard_size": min(count, config.shard_size),
            "batch_size": min(count, config.batch_size),
        },
    )
    small = dataclasses.replace(small, salt=HELD_OUT_SALT)
    identity = identify(small)
    with contextlib.ExitStack() as ray_runtime:
        if not is_published(small, identity):
            say(f"synthesises {image_count(small)} more images, from which nothing learns")
            ray_runtime.enter_context(connected())
        # What another manifest has left unfinished there is of no use to this one, and fewer images
        # do too.
        version = build(small, identity, abandon=True, accept_partial=True).version
    samples = [each for receipt in version.receipts() for each in version.samples(receipt)]
    if manifest.distillation.labelled_by_teacher:
        answers = [int(each.arrays["distances"].argmin()) for each in samples]
    else:
        ensemble, answers = _labellers(manifest, learned), []
        for start in range(0, len(samples), BATCH):
            images = [
                each.decoded(lambda data: decode_image(data, config.image_size))
                for each in samples[start : start + BATCH]
            ]
            pixels = from_bytes(torch.from_numpy(np.stack(images)).to(pick_device()))
            with torch.inference_mode():
                answers += ensemble.distances(pixels.contiguous()).argmin(dim=1).tolist()
    items = tuple(
        Item("synthesised", answer, each.key, each.image)
        for answer, each in zip(answers, samples, strict=True)
    )
    source = f"synthesised images of version {version.id}, from which nothing has learned"
    return Domains(source, manifest.classes, items, ())


def _entry(seeds: Sequence[Exported], ms: Mapping[tuple[str, str], float]) -> dict[str, Any]:
    """What `candidates.json` says of a candidate, from all its seeds."""
    first = seeds[0]
    name = first.candidate.name
    files = {}
    for precision, file in FILES.items():
        accuracies = [each.accuracies[precision] for each in seeds]
        files[precision] = {
            "file": file,
            "bytes": (first.folder / file).stat().st_size,
            "ms": ms[name, precision],
            "means": [statistics.fmean(each.values()) for each in accuracies],
            "domains": {domain: [each[domain] for each in accuracies] for domain in accuracies[0]},
        }
    return {
        "name": name,
        **first.candidate.about,
        "folder": folder_of(name),
        "seeds": [each.candidate.seed for each in seeds if each.candidate.seed is not None],
        "students": [each.candidate.student for each in seeds if each.candidate.student],
        "parameters": first.facts["parameters"],
        "gpu_ms": first.gpu_ms,
        "files": files,
    }
