"""Verify a published version: every shard, receipt and row of the index against the manifest."""

import hashlib
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from dfkd import catalogue
from dfkd.errors import CorruptionError
from dfkd.published import PublishedVersion
from dfkd.shards import Receipt, decode_receipt

Row = dict[str, Any]


def verify(version: PublishedVersion) -> list[str]:
    """Every disagreement within a version, one line each; empty if it is whole.

    Reads everything once, a shard at a time. A store that cannot be reached still raises.
    """
    problems = [problem for receipt in version.shards for problem in _receipt(version, receipt)]
    with tempfile.TemporaryDirectory() as folder:
        rows, index_problems = _index(version, Path(folder, "index.parquet"))
        problems += index_problems
        for receipt in version.shards:
            problems += _shard(version, receipt, rows)
        if rows is not None and next(rows, None) is not None:
            problems.append("index.parquet: has rows of no shard in manifest.json")
    if not version.storage.exists("README.md"):
        problems.append("README.md: the data card is missing; run jobs/synthesize.py again")
    return problems


def _receipt(version: PublishedVersion, receipt: Receipt) -> Iterator[str]:
    key = f"receipts/{receipt.task}.json"
    try:
        stored = decode_receipt(version.storage.get(key), version.storage.location(key))
    except CorruptionError as error:
        yield str(error)
        return
    if stored != receipt:
        yield f"{version.storage.location(key)}: is not the receipt in manifest.json; restore it"


def _index(version: PublishedVersion, path: Path) -> tuple[Iterator[Row] | None, list[str]]:
    try:
        version.storage.get_file("index.parquet", path)
    except CorruptionError as error:
        return None, [str(error)]
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != version.manifest["index"]["sha256"]:
        place = version.storage.location("index.parquet")
        return None, [
            f"{place}: sha256 {digest[:12]}.. is not the one in manifest.json; "
            "run jobs/synthesize.py again, it writes the index anew"
        ]
    try:
        return catalogue.read_index(path), []
    except (ValueError, pa.ArrowException) as error:
        return None, [f"{version.storage.location('index.parquet')}: {error}"]


def _shard(version: PublishedVersion, receipt: Receipt, rows: Iterator[Row] | None) -> list[str]:
    expected = [] if rows is None else list(itertools.islice(rows, receipt.samples))
    try:
        found = [catalogue.index_row(sample, receipt.shard) for sample in version.samples(receipt)]
    except CorruptionError as error:
        return [str(error)]
    if rows is not None and found != expected:
        return [f"index.parquet: its rows for {receipt.shard} are not what that shard holds"]
    return []
