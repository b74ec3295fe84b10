"""Small finished runs, made without training: versions, prompts, students, results."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from dfkd.config.identity import identity
from dfkd.config.manifest import Manifest
from dfkd.dataset.versions import begin
from dfkd.distillation.student_store import locate_student
from dfkd.evaluation.data import Domains, Item
from dfkd.evaluation.results import ResultRow, results, row, write_results
from dfkd.models.student import build, card, save_student
from dfkd.prompts.statistics import statistics
from dfkd.storage import cost_records
from dfkd.storage.base import Storage
from dfkd.storage.local import open_storage
from dfkd.utils.strict_json import canonical
from tests.helpers.candidates import FOUR, tree
from tests.helpers.tiny_version import publish, write_manifest

CLASSES = ("red", "<img src=x onerror=alert(1)>", "Æ & 'blue'")
"""One of them would run a script if it were not escaped."""
METHODS = ("vanilla", "contrastive")
DOMAINS = ("photo", "line_drawing", "sketch")
TEXT = 'A <script>alert(2)</script> of "things"'
SEEDS = (0, 1)
SIZES = {"teacher": 1_000_000, "student": 250_000}


def finished(folder: Path, gain: float = 0.0, **sections: dict[str, object]) -> Manifest:
    """The manifest of a run under `folder`, finished; students are right `gain` more often."""
    folder.mkdir(parents=True, exist_ok=True)
    path = write_manifest(
        folder,
        classes=list(CLASSES),
        prompts={"method": list(METHODS)},
        distillation={"seeds": list(SEEDS)},
        **sections,
    )
    manifest = Manifest.read(path)
    storage = open_storage(manifest.storage.root)
    for method in METHODS:
        put_prompts(manifest, method)
        publish(manifest, method)
        for seed in SEEDS:
            put_student(manifest, method, seed)
    names = [locate_student(manifest, m, seed).name for m in METHODS for seed in SEEDS]
    put_results(storage, gain, names)
    put_records(storage)
    measured = tree(*FOUR)
    for each in measured["candidates"]:
        if each["kind"] == "student":
            each["students"] = [locate_student(manifest, METHODS[-1], s).name for s in SEEDS]
    storage.put("candidates.json", canonical(measured))
    return manifest


def put_prompts(manifest: Manifest, method: str) -> None:
    """Two parts of 8-dimensional prompts, those of a class alike, and their statistics."""
    chosen = manifest.with_method(method)
    home = open_storage(manifest.storage.root).child(f"data/{method}")
    version = begin(home, identity(chosen, {}))
    noise = np.random.default_rng(len(method))
    parts = {}
    for part in range(2):
        labels = np.repeat(np.arange(len(CLASSES), dtype=np.int32), 4)
        spread = 0.1 if method == "vanilla" else 0.6
        embeddings = np.eye(8)[labels] + spread * noise.normal(size=(len(labels), 8))
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        table = pa.table(
            {
                "class_index": labels,
                "index": np.tile(np.arange(4, dtype=np.int32), len(CLASSES)) + 4 * part,
                "text": [TEXT] * len(labels),
                "embedding": pa.array(embeddings.astype("f4").tolist(), pa.list_(pa.float32())),
                "initial": pa.nulls(len(labels), pa.list_(pa.float32())),
            }
        )
        version.put_prompts(f"{part:05d}", table)
        parts[f"{part:05d}"] = table
    version.seal_prompts(parts, statistics(parts.values(), np.eye(8)[: len(CLASSES)]))


def put_student(manifest: Manifest, method: str, seed: int) -> None:
    """A student of random weights."""
    location = locate_student(manifest, method, seed)
    storage, student = location.storage, build(manifest.distillation, len(CLASSES), 32, seed)
    facts = card(manifest.distillation, manifest.classes, 32)
    save_student(storage, student, facts | {"version": location.version.fingerprint})


def scored(model: str, method: str, seed: int, domain: str, right: float) -> ResultRow:
    """A row in which each of 20 images a class is right with this share, else the next class."""
    M = len(CLASSES)
    counts = np.zeros((M, M), dtype=np.int64)
    for c in range(M):
        counts[c, c] = round(20 * right)
        counts[c, (c + 1) % M] = 20 - round(20 * right)
    return row(model, method, seed, domain, CLASSES, counts)


def put_results(storage: Storage, gain: float, students: Sequence[str]) -> None:
    """The teacher is right in 80 %, vanilla in 40 and contrastive in 60 (and 5 more of seed 1)."""
    rows = []
    for domain in DOMAINS:
        rows.append(scored("teacher", "zero-shot", 0, domain, 0.8))
        for seed in SEEDS:
            for method, share in zip(METHODS, (0.4, 0.6), strict=True):
                rows.append(scored("student", method, seed, domain, share + gain + seed / 20))
    items = tuple(Item(domain, 0, "a.png") for domain in DOMAINS)
    data = Domains("bundled", CLASSES, items, ("<i>a note</i>",))
    write_results(storage, results(data, rows, [], SIZES, students))


def put_records(storage: Storage) -> None:
    """An hour of synthesis by two workers."""
    entry = cost_records.CostRecord(
        stage="synthesize", method="vanilla", seed=None, seconds=3600.0, worker_seconds=7000.0,
        images=24, bytes=123_456, workers=2, device="cpu",
    )  # fmt: skip
    cost_records.add(storage, entry)
