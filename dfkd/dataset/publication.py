"""Write the files of a published version, all byte-deterministic: blocks, data card, facts."""

import hashlib
import io
import math
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dfkd.config.identity import class_names, weights_of
from dfkd.config.methods import method_of
from dfkd.config.plan import Task, block_name
from dfkd.dataset.published import INDEX_ROWS, INDEX_SCHEMA, Block, PublishedVersion
from dfkd.dataset.receipts import COLUMNS, Images, Receipt
from dfkd.dataset.receipts import read as read_receipt
from dfkd.dataset.shards import sample_key
from dfkd.errors import CorruptionError, PartialError
from dfkd.storage import layout
from dfkd.storage.base import Storage, in_order
from dfkd.utils.markdown import escape
from dfkd.utils.strict_json import canonical

SCHEMA_VERSION = 3
"""Format version of version.json and its blocks; raised with every incompatible change."""

Entry = tuple[Receipt, Images]
"""What a worker has stored about a shard."""


def publish(
    home: Storage,
    identity: Mapping[str, Any],
    fingerprint: str,
    environment: Mapping[str, Any],
    blocks: Iterable[tuple[str, Sequence[Task]]],
    done: Container[str],
    quarantined: Collection[str],
) -> None:
    """Write the blocks, the data card and, last and only once, version.json with their hashes.

    It reads receipts, and no shard. Every value is known to the last bit from the receipts, so the
    same work gives the same bytes whoever publishes it.

    Args:
        home: the storage of the method.
        blocks: name and tasks of each block.
        done: the ids of the tasks that have a receipt.
        quarantined: ids of tasks that may lack one.

    Raises:
        PartialError: a task that is not quarantined has no receipt, or there is no image.
        CorruptionError: a receipt is missing or damaged.
    """
    storage = home.child(layout.version(fingerprint[:16]))
    names, method = class_names(identity), method_of(identity)
    written: list[Block] = []
    totals: Counter[str] = Counter()
    samples, failed = [0] * len(names), [0] * len(names)
    carried: Counter[str] = Counter()
    sums: list[tuple[float, float]] = []
    planned, missing, unexpected = 0, [], []
    for name, tasks in blocks:
        planned += len(tasks)
        lacking = [task.id for task in tasks if task.id not in done]
        missing += lacking
        unexpected += [task for task in lacking if task not in quarantined]
        if unexpected:
            continue  # only counted from here on
        keys = (layout.receipt(task.id) for task in tasks if task.id in done)
        entries = in_order(lambda key: read_receipt(storage, key, fingerprint), keys)
        receipts, index = block_files(entries, names, method)
        if not receipts:
            continue  # all of its tasks are quarantined
        written.append(put_block(storage, name, receipts, index))
        for receipt in receipts:
            samples[receipt.class_index] += receipt.samples
            failed[receipt.class_index] += len(receipt.failed)
            for total in ("samples", "bytes", "labels", "inconsistent"):
                totals[total] += getattr(receipt, total)
            if receipt.version:
                carried[receipt.version] += 1
        sums.append(
            (
                math.fsum(receipt.label_sum for receipt in receipts),
                math.fsum(receipt.label_squares for receipt in receipts),
            )
        )
    if unexpected:
        shown = ", ".join(unexpected[:5]) + (", ..." if len(unexpected) > 5 else "")
        raise PartialError(
            f"version {fingerprint[:16]}: {len(unexpected)} of {planned} tasks have no receipt "
            f"({shown}); run the same command again, it resumes"
        )
    if not totals["samples"]:
        raise PartialError(
            f"version {fingerprint[:16]}: not one image of its {planned} tasks could be made; see "
            "dfkd status, then run the same command again"
        )
    count = max(1, totals["labels"])
    mean = math.fsum(each for each, _ in sums) / count
    spread = math.fsum(each for _, each in sums) / count - mean**2
    facts: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "fingerprint": fingerprint,
        "identity": dict(identity),
        "environment": dict(environment),
        "weights": weights_of(identity),
        "classes": names,
        "shards": sum(block.shards for block in written),
        "samples": totals["samples"],
        "bytes": totals["bytes"],
        "failed": sum(failed),
        "inconsistent": totals["inconsistent"],
        "class_samples": samples,
        "class_failed": failed,
        "carried": dict(carried),
        "quarantined": sorted(missing),
        "blocks": [asdict(block) for block in written],
        "label_mean": mean,
        "label_std": math.sqrt(max(spread, 0.0)),
    }
    # It holds the sha256 of each part of the prompts.
    if storage.exists(layout.PROMPTS_SUMMARY):
        facts["prompts"] = hashlib.sha256(storage.get(layout.PROMPTS_SUMMARY)).hexdigest()
    card = data_card(facts).encode()
    facts["card"] = hashlib.sha256(card).hexdigest()
    # Another publisher may have been faster, and this one must not replace its card.
    if storage.exists(layout.PUBLISHED):
        return
    # This object makes the version published, so everything it refers to is written before.
    storage.put(layout.CARD, card)
    storage.put_if_absent(layout.PUBLISHED, canonical(facts))


def block_files(
    entries: Iterable[Entry], classes: Sequence[str], method: str
) -> tuple[list[Receipt], bytes]:
    """The receipts of a block, and its part of the index as a Parquet file.

    Args:
        entries: what workers have stored, in the order of class and shard.
        classes: class names by class index.
        method: the version's.
    """
    receipts: list[Receipt] = []
    sink = io.BytesIO()
    rows: dict[str, list[Any]] = {name: [] for name in INDEX_SCHEMA.names}
    with pq.ParquetWriter(sink, INDEX_SCHEMA, compression="zstd") as writer:
        for receipt, images in entries:
            receipts.append(receipt)
            for name in COLUMNS:
                values = getattr(images, name)
                rows[name] += map(bytes.fromhex, values) if name == "sha256" else values
            own = receipt.class_index
            rows["key"] += (sample_key(own, index) for index in images.index)
            shared = {"shard": receipt.shard, "class": classes[own], "class_index": own}
            for name, value in (shared | {"method": method}).items():
                rows[name] += [value] * receipt.samples
            # Rows are written in groups, so that memory stays bounded for any size of shards.
            if len(rows["key"]) >= INDEX_ROWS:
                writer.write_table(pa.table(rows, INDEX_SCHEMA))
                rows = {name: [] for name in rows}
        if rows["key"]:
            writer.write_table(pa.table(rows, INDEX_SCHEMA))
    return receipts, sink.getvalue()


def put_block(storage: Storage, name: str, receipts: Sequence[Receipt], index: bytes) -> Block:
    """Store a block of a version; returns what version.json says of it."""
    listed = canonical([asdict(receipt) for receipt in receipts])
    block = Block(
        name=name,
        receipts=hashlib.sha256(listed).hexdigest(),
        index=hashlib.sha256(index).hexdigest(),
        shards=len(receipts),
        samples=sum(receipt.samples for receipt in receipts),
    )
    storage.put_if_absent(block.receipts_key, listed)
    storage.put_if_absent(block.index_key, index)
    return block


def block_entries(version: PublishedVersion, block: Block) -> Iterator[Entry]:
    """Yield what workers had stored about the shards of a published block.

    Raises:
        CorruptionError: the block is not what was published.
    """
    table = version.block_index(block, COLUMNS)
    start = 0
    for receipt in version.block_receipts(block):
        rows = table.slice(start, receipt.samples)
        columns = {name: rows[name].to_pylist() for name in COLUMNS}
        columns["sha256"] = [digest.hex() for digest in columns["sha256"]]
        yield receipt, Images(**columns)
        start += receipt.samples


def repair(version: PublishedVersion) -> None:
    """Write identity and data card of a version again if they do not match its facts.

    That happens to the card when two publishers race: one writes version.json, and the other
    replaces the card before it sees that.

    Raises:
        CorruptionError: this dfkd writes another card than that of the facts.
    """
    storage, damaged = version.storage, version.damaged_files()
    if layout.IDENTITY in damaged:
        storage.put(layout.IDENTITY, canonical(version.facts["identity"]))
    if layout.CARD in damaged:
        card = data_card(version.facts).encode()
        if hashlib.sha256(card).hexdigest() != version.facts["card"]:
            made = version.facts["environment"].get("dfkd", "another version")
            raise CorruptionError(
                f"{storage.location(layout.CARD)}: is damaged, and this dfkd writes it otherwise "
                f"than dfkd {made}, which made it; restore it from a copy"
            )
        storage.put(layout.CARD, card)


def repair_block(version: PublishedVersion, block: Block) -> None:
    """Write the files of a block again, from the receipts that workers have stored.

    Raises:
        CorruptionError: a receipt is missing or damaged, or this pyarrow writes the index otherwise
            than the one that made it.
    """
    storage, classes = version.storage, len(version.classes)
    found = filter(None, map(layout.RECEIPT.fullmatch, storage.list(layout.RECEIPTS)))
    own = (match for match in found if block_name(int(match[2]), classes) == block.name)
    keys = [match[0] for match in sorted(own, key=lambda match: (int(match[1]), int(match[2])))]
    entries = in_order(lambda key: read_receipt(storage, key, version.fingerprint), keys)
    receipts, index = block_files(entries, version.classes, method_of(version.facts["identity"]))
    listed = canonical([asdict(receipt) for receipt in receipts])
    for key, data, digest in (
        (block.receipts_key, listed, block.receipts),
        (block.index_key, index, block.index),
    ):
        if hashlib.sha256(data).hexdigest() != digest:
            made = version.facts["environment"].get("pyarrow", "another version")
            raise CorruptionError(
                f"{storage.location(key)}: is damaged, and this dfkd with pyarrow {pa.__version__} "
                f"writes it otherwise than pyarrow {made}, which made it; restore it from a copy, "
                "or run once more with that pyarrow"
            )
        storage.put(key, data)


FRONT_MATTER = """\
---
pretty_name: Synthetic images of {classes} classes
task_categories:
- image-classification
tags:
- synthetic
- webdataset
- knowledge-distillation
- dfkd
annotations_creators:
- machine-generated
size_categories:
- {size}
configs:
- config_name: default
  data_files:
  - split: train
    path: {shards}*.tar
dataset_info:
  splits:
  - name: train
    num_examples: {samples}
    num_bytes: {bytes}
---

"""
"""What the Hugging Face hub and `datasets.load_dataset` read of a card.

It names no licence, because that of the weights decides, which dfkd does not know. With the number
of examples, a folder that lacks shards, which may lie in another version, is an error of
`load_dataset` and not a smaller data set.
"""

INTRODUCTION = """\
{samples} images in {shards} WebDataset shards ({bytes} bytes), synthesised by dfkd from class names
alone: no image was read to make them. Each image carries a vision-language teacher's distances to
the class prompts (`distances.npy`, smaller is closer) and its embedding of the image
(`embedding.npy`). `datasets.load_dataset` reads this folder, and `webdataset` the tars in
`shards/`.
"""

TERMS = """\
The images derive from these weights and fall under whatever terms the weights carry. They are
training material for a student, not pictures of real things: they inherit the teacher's biases, and
how a class looks is the teacher's idea of its name.

`version.json` holds the full configuration, library versions and the hashes of the files in
`index/`: Parquet with a row for each image (its prompt, seed, loss and confidence), and JSON with
the sha256 of each shard.
"""


def data_card(facts: Mapping[str, Any]) -> str:
    """The data card of a version (its README.md) as Markdown, from its facts only.

    It begins with the YAML block of the Hugging Face hub.
    """
    identity = facts["identity"]
    counts = {name: facts[name] for name in ("samples", "shards", "bytes")}
    names = [escape(name).replace("|", "\\|") for name in facts["classes"]]
    rows = zip(names, facts["class_samples"], facts["class_failed"], strict=True)
    front_matter = FRONT_MATTER.format(
        classes=len(facts["classes"]),
        size=size_category(facts["samples"]),
        shards=layout.SHARDS,
        samples=facts["samples"],
        bytes=facts["bytes"],
    )
    lines = [
        f"# Synthetic images of {len(facts['classes'])} classes",
        "",
        INTRODUCTION.format(**counts),
        f"- version: `{facts['fingerprint'][:16]}` (fingerprint `{facts['fingerprint']}`)",
        f"- method: {method_of(identity)}",
        f"- teacher: {escape(str(identity.get('teacher.model', 'see its files below')))}",
        f"- labels: mean {facts['label_mean']:.6f}, standard deviation "
        f"{facts['label_std']:.6f} over all distances",
        f"- images that the teacher takes for another class than their own: "
        f"{facts['inconsistent']}",
        f"- images that diverged and were left out: {facts['failed']}",
        f"- tasks quarantined and left out: {', '.join(facts['quarantined']) or 'none'}",
        *(
            f"- shards that lie in `versions/{version}`, from which they were carried over: {count}"
            for version, count in sorted(facts["carried"].items())
        ),
        "",
        "## Images per class",
        "",
        "| class | images | failed |",
        "|---|---|---|",
        *(f"| {name} | {samples} | {failed} |" for name, samples, failed in rows),
        "",
        "## Provenance and licence",
        "",
        "| weights | sha256 |",
        "|---|---|",
        *(f"| {role} | `{digest}` |" for role, digest in sorted(facts["weights"].items())),
        "",
        TERMS,
    ]
    return front_matter + "\n".join(lines)


def size_category(samples: int) -> str:
    """The hub's name for a number of samples, such as `1K<n<10K` for 1,000 to 9,999."""
    names = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
    # The first name stands for a thousand, each further one for ten times as many.
    reached = sum(samples >= 1000 * 10**place for place in range(len(names)))
    if not reached:
        return f"n<{names[0]}"
    if reached == len(names):
        return f"n>{names[-1]}"
    return f"{names[reached - 1]}<n<{names[reached]}"
