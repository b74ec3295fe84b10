"""Verify a published version: every shard, receipt, prompt, and the index."""

from collections.abc import Callable, Iterable
from itertools import chain

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
        "run dfkd verify, which restores it"
        for key in version.damaged_files()
    ]
    for found in over_blocks(lambda block: block_problems(version, block), version.blocks):
        problems += found
    if version.facts.get("prompts") is None:
        return problems
    try:
        for name, digest in version.prompt_digests().items():
            if sha256_object(version.storage, layout.prompts(name)) != digest:
                where = version.storage.location(layout.prompts(name))
                problems.append(f"{where}: is not what was published; {PROMPTS_REMEDY}")
    except CorruptionError as error:
        problems.append(str(error))
    return problems


def block_problems(version: PublishedVersion, block: Block) -> list[str]:
    """The inconsistencies of a block, of its receipts and of its shards."""
    try:
        receipts = version.block_receipts(block)
        version.block_index(block, [])
    except CorruptionError as error:
        return [str(error)]

    def found(receipt: Receipt) -> list[str]:
        """The problems of a stored receipt and of its shard."""
        problems = []
        key = layout.receipt(receipt.task)
        try:
            if read(version.storage, key, version.fingerprint)[0] != receipt:
                where = version.storage.location(key)
                problems.append(f"{where}: is not the receipt that was published; restore it")
        except CorruptionError as error:
            problems.append(str(error))
        try:
            for _ in version.samples(receipt):
                pass
        except CorruptionError as error:
            problems.append(str(error))
        return problems

    return list(chain.from_iterable(in_order(found, receipts, ahead=4)))
