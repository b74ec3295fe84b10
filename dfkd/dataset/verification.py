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
"""The name of a part of the prompts."""


def verify(version: PublishedVersion) -> list[str]:
    """Every disagreement within a version, one line each; empty if it is whole.

    Reads everything once, a shard at a time. A store that cannot be reached still raises.
    """
    problems = [problem for receipt in version.shards for problem in _receipt(version, receipt)]
    problems += _prompts(version)
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
        return problems + [line for receipt in version.shards for line in _shard(version, receipt)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, publication.INDEX_KEY)
        version.storage.get_file(publication.INDEX_KEY, path)
        rows = publication.read_index(path)
        try:
            for receipt in version.shards:
                problems += _shard(version, receipt, list(itertools.islice(rows, receipt.samples)))
            if next(rows, None) is not None:
                problems.append("index.parquet: has rows of no shard in manifest.json")
        except CorruptionError as error:
            problems.append(str(error))
    return problems


_REMEDY = "restore it from a copy, or give another storage.root and synthesise again"


def _prompts(version: PublishedVersion) -> Iterator[str]:
    storage, wanted = version.storage, version.manifest.get("prompts")
    if wanted is None:
        return
    if sha256_object(storage, publication.PROMPTS_KEY) != wanted:
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
    for name, digest in parts.items():
        if sha256_object(storage, layout.prompts(name)) != digest:
            place = storage.location(layout.prompts(name))
            yield f"{place}: is not what was published; {_REMEDY}"


def _receipt(version: PublishedVersion, receipt: Receipt) -> Iterator[str]:
    key = layout.receipt(receipt.task)
    try:
        stored = decode_receipt(version.storage.get(key), version.storage.location(key))
    except CorruptionError as error:
        yield str(error)
        return
    if stored != receipt:
        yield f"{version.storage.location(key)}: is not the receipt in manifest.json; restore it"


def _shard(
    version: PublishedVersion, receipt: Receipt, expected: list[Row] | None = None
) -> Iterator[str]:
    try:
        samples = list(version.placed(receipt))
    except CorruptionError as error:
        yield str(error)
        return
    found = [publication.index_row(*sample, receipt.shard) for sample in samples]
    if expected is not None and found != expected:
        yield f"index.parquet: its rows for {receipt.shard} are not what that shard holds"
