"""Verify a published version: every shard, receipt, prompt and row of the index."""

import itertools
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dfkd.dataset import publication
from dfkd.dataset.published import PublishedVersion, read_json, sha256_object
from dfkd.dataset.shards import Receipt, decode_receipt
from dfkd.errors import CorruptionError
from dfkd.storage import layout

Row = dict[str, Any]

_PART_NAME = re.compile("[0-9]{5,9}")
"""Valid names of a part of the prompts."""


def verify(version: PublishedVersion) -> list[str]:
    """All inconsistencies of a version, one line each; an empty list if it is intact.

    Reads all objects, one shard at a time.

    Raises:
        InfrastructureError: the store cannot be reached.
    """
    problems = [
        problem for receipt in version.shards for problem in _receipt_problems(version, receipt)
    ]
    problems += _prompt_problems(version)
    damaged = [
        key
        for key, digest in version.files.items()
        if sha256_object(version.storage, key) != digest
    ]
    problems += [
        f"{version.storage.location(key)}: is not what was published; "
        "run jobs/synthesize.py again, it writes the file anew"
        for key in damaged
    ]
    if publication.INDEX_KEY in damaged:
        # A damaged index says nothing about the shards, so they are checked against receipts only.
        return problems + [
            line for receipt in version.shards for line in _shard_problems(version, receipt)
        ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, publication.INDEX_KEY)
        version.storage.get_file(publication.INDEX_KEY, path)
        rows = publication.read_index(path)
        try:
            # The index is ordered as the shards are, so each shard takes the next rows.
            for receipt in version.shards:
                expected = list(itertools.islice(rows, receipt.samples))
                problems += _shard_problems(version, receipt, expected)
            if next(rows, None) is not None:
                problems.append("index.parquet: has rows of no shard in manifest.json")
        except CorruptionError as error:
            problems.append(str(error))
    return problems


_REMEDY = "restore it from a copy, or give another storage.root and synthesise again"


def _prompt_problems(version: PublishedVersion) -> Iterator[str]:
    storage, expected = version.storage, version.manifest.get("prompts")
    if expected is None:
        return
    if sha256_object(storage, publication.PROMPTS_KEY) != expected:
        yield f"{storage.location(publication.PROMPTS_KEY)}: is not what was published; {_REMEDY}"
        return
    try:
        parts = read_json(storage, publication.PROMPTS_KEY).get("parts")
    except CorruptionError as error:
        yield str(error)
        return
    if not isinstance(parts, dict) or not all(map(_PART_NAME.fullmatch, parts)):
        yield f"{storage.location(publication.PROMPTS_KEY)}: names no parts; {_REMEDY}"
        return
    # The names were checked first, because they become keys.
    for name, digest in parts.items():
        if sha256_object(storage, layout.prompts(name)) != digest:
            where = storage.location(layout.prompts(name))
            yield f"{where}: is not what was published; {_REMEDY}"


def _receipt_problems(version: PublishedVersion, receipt: Receipt) -> Iterator[str]:
    key = layout.receipt(receipt.task)
    try:
        stored = decode_receipt(version.storage.get(key), version.storage.location(key))
    except CorruptionError as error:
        yield str(error)
        return
    if stored != receipt:
        yield f"{version.storage.location(key)}: is not the receipt in manifest.json; restore it"


def _shard_problems(
    version: PublishedVersion, receipt: Receipt, expected: list[Row] | None = None
) -> Iterator[str]:
    """Yield the problems of one shard; `expected` are its rows of the index, if that is intact."""
    try:
        samples = list(version.located_samples(receipt))
    except CorruptionError as error:
        yield str(error)
        return
    rows = [publication.index_row(*sample, receipt.shard) for sample in samples]
    if expected is not None and rows != expected:
        yield f"index.parquet: its rows for {receipt.shard} are not what that shard holds"
