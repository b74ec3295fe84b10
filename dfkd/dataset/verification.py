"""Verify a published version: every shard, receipt, prompt, and the index."""

import itertools
from collections.abc import Iterator

from dfkd.dataset.published import PROMPTS_REMEDY, PublishedVersion, sha256_object
from dfkd.dataset.shards import Receipt, decode_receipt
from dfkd.errors import CorruptionError
from dfkd.storage import layout
from dfkd.storage.base import SMALL_OBJECT, in_order


def verify(version: PublishedVersion) -> list[str]:
    """All inconsistencies of a version, one line each; an empty list if it is intact.

    Reads all objects, a few shards at a time.

    Raises:
        InfrastructureError: the store cannot be reached.
    """
    found = in_order(lambda receipt: list(_receipt_problems(version, receipt)), version.shards)
    problems = list(itertools.chain.from_iterable(found))
    problems += _prompt_problems(version)
    problems += [
        f"{version.storage.location(key)}: is not what was published; "
        "run jobs/verify.py, which restores it"
        for key in version.damaged_files()
    ]
    shards = in_order(lambda receipt: _shard_problem(version, receipt), version.shards, ahead=4)
    return problems + [problem for problem in shards if problem]


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
        data = version.storage.get(key, SMALL_OBJECT)
        stored = decode_receipt(data, version.storage.location(key))
    except CorruptionError as error:
        yield str(error)
        return
    if stored != receipt:
        yield f"{version.storage.location(key)}: is not the receipt in manifest.json; restore it"


def _shard_problem(version: PublishedVersion, receipt: Receipt) -> str:
    """The problem of one shard; empty if it has none."""
    try:
        for _ in version.samples(receipt):
            pass
    except CorruptionError as error:
        return str(error)
    return ""
