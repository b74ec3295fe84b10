"""Verify a published version: every shard, receipt, prompt, and the index."""

import itertools
from collections.abc import Callable, Iterable, Iterator

from dfkd.dataset.published import PROMPTS_REMEDY, Block, PublishedVersion, sha256_object
from dfkd.dataset.receipts import Receipt, read
from dfkd.errors import CorruptionError
from dfkd.storage import layout
from dfkd.storage.base import in_order

OverBlocks = Callable[[Callable[[Block], list[str]], Iterable[Block]], Iterable[list[str]]]
"""How a function is called for each block: `map`, or `dfkd.cluster.tasks.ray_map`."""


def verify(version: PublishedVersion, over_blocks: OverBlocks = map) -> list[str]:
    """All inconsistencies of a version, one line each; an empty list if it is intact.

    Reads all objects, a few shards at a time.

    Raises:
        InfrastructureError: the store cannot be reached.
    """
    problems = [
        f"{version.storage.location(key)}: is not what was published; "
        "run jobs/verify.py, which restores it"
        for key in version.damaged_files()
    ]
    for found in over_blocks(lambda block: block_problems(version, block), version.blocks):
        problems += found
    return problems + list(_prompt_problems(version))


def block_problems(version: PublishedVersion, block: Block) -> list[str]:
    """The inconsistencies of a block, of its receipts and of its shards."""
    try:
        receipts = version.block_receipts(block)
        version.block_index(block, [])
    except CorruptionError as error:
        return [str(error)]
    found = in_order(lambda receipt: _receipt_problem(version, receipt), receipts)
    shards = in_order(lambda receipt: _shard_problem(version, receipt), receipts, ahead=4)
    return [problem for problem in itertools.chain(found, shards) if problem]


def _prompt_problems(version: PublishedVersion) -> Iterator[str]:
    """Yield the problems of prompts.json and of the parts of the prompts."""
    if version.manifest.get("prompts") is None:
        return
    try:
        for name, digest in version.prompt_digests().items():
            if sha256_object(version.storage, layout.prompts(name)) != digest:
                where = version.storage.location(layout.prompts(name))
                yield f"{where}: is not what was published; {PROMPTS_REMEDY}"
    except CorruptionError as error:
        yield str(error)


def _receipt_problem(version: PublishedVersion, receipt: Receipt) -> str:
    """The problem of a stored receipt; empty if it has none."""
    key = layout.receipt(receipt.task)
    try:
        stored, _ = read(version.storage, key, version.fingerprint)
    except CorruptionError as error:
        return str(error)
    if stored != receipt:
        return f"{version.storage.location(key)}: is not the receipt that was published; restore it"
    return ""


def _shard_problem(version: PublishedVersion, receipt: Receipt) -> str:
    """The problem of one shard; empty if it has none."""
    try:
        for _ in version.samples(receipt):
            pass
    except CorruptionError as error:
        return str(error)
    return ""
