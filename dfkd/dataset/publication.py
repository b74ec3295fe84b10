"""Write the files of a published version: index, data card and manifest, all byte-deterministic."""

import hashlib
import math
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dfkd.config.hashing import sha256_file
from dfkd.config.identity import weights_of
from dfkd.config.methods import method_of
from dfkd.dataset.published import INDEX_ROWS, INDEX_SCHEMA, PublishedVersion, index_row
from dfkd.dataset.shards import Receipt, get_shard, read_shard
from dfkd.errors import CorruptionError
from dfkd.storage import layout
from dfkd.storage.base import Storage, in_order
from dfkd.utils.markdown import escape
from dfkd.utils.strict_json import canonical

SCHEMA_VERSION = 2
"""Format version of manifest.json and index.parquet; raised with every incompatible change."""


@dataclass
class LabelMoments:
    """Running mean and standard deviation of all distances, in float64.

    Samples are added in the order of shards, so the result is the same to the last bit.
    """

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    inconsistent: int = 0
    """Number of images whose nearest class text is not that of their own class."""

    def add(self, distances: np.ndarray[Any, Any], class_index: int) -> None:
        """Add the distances [M] of one image of class `class_index`."""
        self.inconsistent += int(not distances.size or distances.argmin() != class_index)
        values = distances.astype(np.float64)
        self.count += values.size
        self.total += float(values.sum())
        self.squares += float((values**2).sum())

    @property
    def mean(self) -> float:
        """Mean distance; 0 if there is none."""
        return self.total / self.count if self.count else 0.0

    @property
    def std(self) -> float:
        """Population standard deviation; 0 if there is none."""
        spread = self.squares / self.count - self.mean**2 if self.count else 0.0
        return math.sqrt(max(spread, 0.0))


def write_index(home: Storage, receipts: Sequence[Receipt], path: Path) -> LabelMoments:
    """Write index.parquet at `path` from verified shards; returns the statistics of the labels.

    `home` is the storage of the method, because shards may lie in the folders of several versions.
    """
    moments = LabelMoments()
    rows: list[dict[str, Any]] = []
    with pq.ParquetWriter(path, INDEX_SCHEMA, compression="zstd") as writer:
        shards = in_order(lambda each: get_shard(home, each), receipts, ahead=4)
        for receipt, data in zip(receipts, shards, strict=True):
            for sample, location in read_shard(data, receipt):
                moments.add(sample.arrays["distances"], sample.metadata["class_index"])
                rows.append(index_row(sample, location, receipt.shard))
            # Rows are written in groups, so that memory stays bounded for any number of samples.
            if len(rows) >= INDEX_ROWS:
                writer.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA))
                rows.clear()
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA))
    return moments


def publish(
    home: Storage,
    identity: Mapping[str, Any],
    fingerprint: str,
    environment: Mapping[str, Any],
    receipts: Sequence[Receipt],
    quarantined: Sequence[str],
) -> None:
    """Write the index, the data card and, last and only once, manifest.json with their sha256.

    The manifest also holds the sha256 of prompts.json, which holds the sha256 of each part of the
    prompts. `home` is the storage of the method.
    """
    storage = home.child(layout.version(fingerprint[:16]))
    manifest = _describe(identity, fingerprint, environment, receipts, quarantined)
    if storage.exists(layout.PROMPTS_SUMMARY):
        manifest["prompts"] = hashlib.sha256(storage.get(layout.PROMPTS_SUMMARY)).hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder, layout.INDEX)
        moments = write_index(home, receipts, index)
        manifest |= {"label_mean": moments.mean, "label_std": moments.std}
        manifest["inconsistent"] = moments.inconsistent
        card = data_card(manifest).encode()
        manifest["files"] = {
            layout.CARD: hashlib.sha256(card).hexdigest(),
            layout.INDEX: sha256_file(index),
        }
        # Reading the shards takes long, and another publisher may have been faster.
        if storage.exists(layout.MANIFEST):
            return
        # The manifest makes the version published, so everything it refers to is written before.
        storage.put(layout.INDEX, index)
        storage.put(layout.CARD, card)
        storage.put_if_absent(layout.MANIFEST, canonical(manifest))


def repair(version: PublishedVersion) -> None:
    """Write identity, index and data card of a version again if they do not match its manifest.

    That happens to the latter two when two publishers race: one writes the manifest, and the other
    overwrites the files before it sees the manifest.

    Raises:
        CorruptionError: this dfkd writes another card, or this pyarrow another index, than those of
            the manifest.
    """
    storage, damaged = version.storage, version.damaged_files()
    if layout.IDENTITY in damaged:
        storage.put(layout.IDENTITY, canonical(version.manifest["identity"]))
    if layout.CARD in damaged:
        card = data_card(version.manifest).encode()
        if hashlib.sha256(card).hexdigest() != version.files[layout.CARD]:
            made = version.manifest["environment"].get("dfkd", "another version")
            raise CorruptionError(
                f"{storage.location(layout.CARD)}: is damaged, and this dfkd writes it otherwise "
                f"than dfkd {made}, which made it; restore it from a copy"
            )
        storage.put(layout.CARD, card)
    if layout.INDEX not in damaged:
        return
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder, layout.INDEX)
        write_index(version.home, version.shards, index)
        if sha256_file(index) != version.files[layout.INDEX]:
            made = version.manifest["environment"].get("pyarrow", "another version")
            raise CorruptionError(
                f"{storage.location(layout.INDEX)}: is damaged, and pyarrow {pa.__version__} "
                f"writes it otherwise than pyarrow {made}, which made it; restore it from a copy, "
                "or run once more with that pyarrow"
            )
        storage.put(layout.INDEX, index)


def _describe(
    identity: Mapping[str, Any],
    fingerprint: str,
    environment: Mapping[str, Any],
    receipts: Sequence[Receipt],
    quarantined: Sequence[str],
) -> dict[str, Any]:
    """The content of manifest.json that is known before the shards are read."""
    return {
        "schema": SCHEMA_VERSION,
        "fingerprint": fingerprint,
        "identity": dict(identity),
        "environment": dict(environment),
        "weights": weights_of(identity),
        "classes": list(identity["classes"]),
        "samples": sum(receipt.samples for receipt in receipts),
        "bytes": sum(receipt.bytes for receipt in receipts),
        "failed": sum(len(receipt.failed) for receipt in receipts),
        "quarantined": sorted(quarantined),
        "shards": [receipt.as_dict() for receipt in receipts],
    }


INTRODUCTION = """\
{samples} images in {shards} WebDataset shards ({bytes} bytes), synthesised by dfkd from class names
alone: no image was read to make them. Each image carries a vision-language teacher's distances to
the class prompts (`distances.npy`, smaller is closer) and its embedding of the image
(`embedding.npy`).
"""

TERMS = """\
The images derive from these weights and fall under whatever terms the weights carry. They are
training material for a student, not pictures of real things: they inherit the teacher's biases, and
how a class looks is the teacher's idea of its name.

`manifest.json` holds the full configuration, library versions and the sha256 of each shard;
`index.parquet` one row per image with its prompt, seed, loss and confidence.
"""


def data_card(manifest: Mapping[str, Any]) -> str:
    """The data card of a version (its README.md) as Markdown, from its manifest only."""
    identity, shards = manifest["identity"], len(manifest["shards"])
    counts = {"samples": manifest["samples"], "shards": shards, "bytes": manifest["bytes"]}
    lines = [
        f"# Synthetic images of {len(manifest['classes'])} classes",
        "",
        INTRODUCTION.format(**counts),
        f"- version: `{manifest['fingerprint'][:16]}` (fingerprint `{manifest['fingerprint']}`)",
        f"- method: {method_of(identity)}",
        f"- teacher: {escape(str(identity.get('teacher.model', 'see its files below')))}",
        f"- labels: mean {manifest['label_mean']:.6f}, standard deviation "
        f"{manifest['label_std']:.6f} over all distances",
        f"- images that the teacher takes for another class than their own: "
        f"{manifest['inconsistent']}",
        f"- images that diverged and were left out: {manifest['failed']}",
        f"- tasks quarantined and left out: {', '.join(manifest['quarantined']) or 'none'}",
        *_carried_lines(manifest["shards"]),
        "",
        "## Images per class",
        "",
        "| class | images | failed |",
        "|---|---|---|",
        *_class_rows(manifest),
        "",
        "## Provenance and licence",
        "",
        "| weights | sha256 |",
        "|---|---|",
        *(f"| {role} | `{digest}` |" for role, digest in sorted(manifest["weights"].items())),
        "",
        TERMS,
    ]
    return "\n".join(lines)


def _carried_lines(shards: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines that say which shards lie in the folders of other versions."""
    counts = Counter(shard["version"] for shard in shards if shard.get("version"))
    return [
        f"- shards that lie in `versions/{version}`, from which they were carried over: {count}"
        for version, count in sorted(counts.items())
    ]


def _class_rows(manifest: Mapping[str, Any]) -> list[str]:
    """The rows of the table of images by class."""
    names = [escape(name).replace("|", "\\|") for name in manifest["classes"]]
    samples, failed = [0] * len(names), [0] * len(names)
    for shard in manifest["shards"]:
        class_index = int(shard["task"].partition("-")[0])
        samples[class_index] += shard["samples"]
        failed[class_index] += len(shard["failed"])
    return [f"| {name} | {samples[row]} | {failed[row]} |" for row, name in enumerate(names)]
