"""A run of 100,000 images of which only those are there that a page looks at."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dfkd.config.hashing import fingerprint
from dfkd.dataset.publication import SCHEMA_VERSION
from dfkd.dataset.published import INDEX_SCHEMA, PublishedVersion, advance, open_version
from dfkd.dataset.shards import Receipt, Sample, sample_key, write_shard
from dfkd.evaluation.data import Domains, Item
from dfkd.evaluation.results import results, row, write_results
from dfkd.report.gallery import SHARDS_PER_CLASS, evenly
from dfkd.storage import layout
from dfkd.storage.base import Storage
from dfkd.utils.strict_json import canonical

CLASSES, SHARDS, EACH = 10, 100, 100
NAMES = [f"class {c}" for c in range(CLASSES)]
IDENTITY = {"classes": NAMES, "prompts.method": ["mix"], "seed": 0}


def large_run(storage: Storage) -> None:
    """The version, and results of a student that is always right."""
    large_version(storage.child("data/mix"))
    counts = 10 * np.eye(CLASSES, dtype=np.int64)
    rows = [row("student", "mix", 0, "photo", NAMES, counts)]
    data = Domains("bundled", tuple(NAMES), (Item("photo", 0, "a.png"),), ())
    write_results(storage, results(data, rows, [], {"student": 1000}, []))


def large_version(home: Storage) -> PublishedVersion:
    """1,000 shards of 100 images in the index, of which a page opens few; the others are missing.

    The first image of each shard is taken for the next class.
    """
    mark = fingerprint(IDENTITY)
    storage = home.child(f"versions/{mark[:16]}")
    shown = evenly(range(SHARDS), SHARDS_PER_CLASS)
    receipts = []
    for c in range(CLASSES):
        for s in range(SHARDS):
            task = f"{c:04d}-{s:05d}"
            data = shard(c, s) if s in shown else b""
            if data:
                storage.put(f"shards/{task}.tar", data)
            digest = hashlib.sha256(data).hexdigest()
            receipts.append(Receipt(task, f"shards/{task}.tar", digest, len(data), EACH, (), mark))
    index = io.BytesIO()
    with pq.ParquetWriter(index, INDEX_SCHEMA) as writer:
        for table in tables(receipts):
            writer.write_table(table)
    storage.put(layout.INDEX, index.getvalue())
    digest = hashlib.sha256(index.getvalue()).hexdigest()
    manifest = {
        "schema": SCHEMA_VERSION, "fingerprint": mark, "identity": IDENTITY, "classes": NAMES,
        "label_mean": 1.0, "label_std": 0.1,
        "files": {layout.INDEX: digest, layout.CARD: "0" * 64},
        "samples": CLASSES * SHARDS * EACH, "inconsistent": CLASSES * SHARDS,
        "bytes": sum(receipt.bytes for receipt in receipts), "failed": 0, "quarantined": [],
        "weights": {}, "environment": {}, "shards": [vars(receipt) for receipt in receipts],
    }  # fmt: skip
    storage.put("manifest.json", canonical(manifest))
    advance(home, mark[:16])
    return open_version(home, mark[:16])


def noise() -> bytes:
    """An image that hardly can be compressed."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


IMAGE = noise()


def shard(c: int, s: int) -> bytes:
    """The bytes of one shard."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "shard.tar")
        write_shard([sample(c, s * EACH + i) for i in range(EACH)], path)
        return path.read_bytes()


def sample(c: int, index: int) -> Sample:
    """One image, unsure and taken for the next class if it is the first of its shard."""
    first = index % EACH == 0
    distances = np.full(CLASSES, 1.0, np.float32)
    distances[(c + first) % CLASSES] = 0.5
    metadata = {
        "class": NAMES[c], "class_index": c, "index": index, "seed": index, "method": "mix",
        "prompt": "A thing " * 20, "loss": 0.5, "confidence": confidence(index), "steps": 1,
        "attempt": 0,
    }  # fmt: skip
    arrays = {"distances": distances, "embedding": np.ones(8, np.float16)}
    return Sample(sample_key(c, index), IMAGE, "png", metadata, arrays)


def confidence(index: int) -> float:
    """Lowest of the very first image of a class."""
    return 0.1 if index == 0 else 0.2 if index % EACH == 0 else 0.9


def tables(receipts: list[Receipt]) -> Iterator[pa.Table]:
    """The index, a table for each shard."""
    for receipt in receipts:
        c, s = (int(part) for part in receipt.task.split("-"))
        indices = [s * EACH + i for i in range(EACH)]
        columns = {
            "key": [sample_key(c, i) for i in indices], "shard": [receipt.shard] * EACH,
            "class": [NAMES[c]] * EACH, "class_index": [c] * EACH, "index": indices,
            "seed": indices, "method": ["mix"] * EACH, "prompt": ["A thing " * 20] * EACH,
            "loss": [0.5] * EACH, "confidence": [confidence(i) for i in indices],
            "steps": [1] * EACH, "attempt": [0] * EACH, "extension": ["png"] * EACH,
            "start": indices, "sha256": [bytes(32)] * EACH,
        }  # fmt: skip
        yield pa.table(columns, schema=INDEX_SCHEMA)
