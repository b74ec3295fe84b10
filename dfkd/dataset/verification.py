"""Verify a published version: every shard, receipt, prompt and row of the index."""

import itertools
from collections.abc import Iterator
from typing import Any

from dfkd.dataset.published import (
    INDEX_SCHEMA,
    PROMPTS_REMEDY,
    PublishedVersion,
    index_row,
    sha256_object,
)
from dfkd.dataset.shards import Receipt, decode_receipt, get_shard, read_shard
from dfkd.errors import CorruptionError
from dfkd.storage import layout
from dfkd.storage.base import MissingObject, in_order

Row = dict[str, Any]


def verify(version: PublishedVersion) -> list[str]:
    """All inconsistencies of a version, one line each; an empty list if it is intact.

    Reads all objects, a few shards at a time.

    Raises:
        InfrastructureError: the store cannot be reached.
    """
    found = in_order(lambda receipt: list(_receipt_problems(version, receipt)), version.shards)
    problems = list(itertools.chain.from_iterable(found))
    problems += _prompt_problems(version)
    damaged = version.damaged_files()
    problems += [
        f"{version.storage.location(key)}: is not what was published; "
        "run jobs/verify.py, which restores it"
        for key in damaged
    ]
    if layout.INDEX not in damaged:
        return [*problems, *_index_problems(version)]
    # A damaged index says nothing about the shards, so they are checked against receipts only.
    return problems + [
        problem for shard in _shards(version) for problem in _shard_problems(version, *shard)
    ]


def _prompt_problems(version: PublishedVersion) -> Iterator[str]:
    """Yield the problems of prompts.json and of the parts of the prompts."""
    if version.manifest.get("prompts") is None:
        return
    try:
        digests = version.prompt_digests()
    except CorruptionError as error:
        yield str(error)
        return
    for name, digest in digests.items():
        if sha256_object(version.storage, layout.prompts(name)) != digest:
            where = version.storage.location(layout.prompts(name))
            yield f"{where}: is not what was published; {PROMPTS_REMEDY}"


def _receipt_problems(version: PublishedVersion, receipt: Receipt) -> Iterator[str]:
    """Yield the problem of a stored receipt, if it has one."""
    key = layout.receipt(receipt.task)
    try:
        stored = decode_receipt(version.storage.get(key), version.storage.location(key))
    except CorruptionError as error:
        yield str(error)
        return
    if stored != receipt:
        yield f"{version.storage.location(key)}: is not the receipt in manifest.json; restore it"


def _index_problems(version: PublishedVersion) -> Iterator[str]:
    """Yield the problems of all shards, each compared with its rows of an intact index."""
    batches = version.index(INDEX_SCHEMA.names)
    rows = (row for batch in batches for row in batch.to_pylist())
    try:
        # The index is ordered as the shards are, so each shard takes the next rows.
        for receipt, data in _shards(version):
            expected = list(itertools.islice(rows, receipt.samples))
            yield from _shard_problems(version, receipt, data, expected)
        if next(rows, None) is not None:
            yield "index.parquet: has rows of no shard in manifest.json"
    except CorruptionError as error:
        yield str(error)


def _shards(version: PublishedVersion) -> Iterator[tuple[Receipt, bytes | CorruptionError]]:
    """Yield each receipt with the bytes of its shard, or why there are none."""

    def read(receipt: Receipt) -> bytes | CorruptionError:
        try:
            return get_shard(version.home, receipt)
        except MissingObject:
            where = version.home.location(receipt.key)
            return CorruptionError(
                f"{where}: is missing; restore it, or delete the version and synthesise it again"
            )
        except CorruptionError as error:
            return error

    return zip(version.shards, in_order(read, version.shards, ahead=4), strict=True)


def _shard_problems(
    version: PublishedVersion,
    receipt: Receipt,
    data: bytes | CorruptionError,
    expected: list[Row] | None = None,
) -> Iterator[str]:
    """Yield the problems of one shard; `expected` are its rows of the index, if that is intact."""
    try:
        if isinstance(data, CorruptionError):
            raise data
        samples = list(read_shard(data, receipt))
    except CorruptionError as error:
        yield str(error)
        return
    rows = [index_row(*sample, receipt.shard) for sample in samples]
    if expected is not None and rows != expected:
        yield f"index.parquet: its rows for {receipt.shard} are not what that shard holds"
