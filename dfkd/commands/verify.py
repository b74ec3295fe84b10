"""Check every shard, receipt and block of the index of each method's current version.

An identity, block of the index or data card that is not what was published is made again. With
RAY_ADDRESS the workers of that cluster read the shards.
"""

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dfkd.commands import command_line
from dfkd.config.manifest import Manifest
from dfkd.errors import CorruptionError
from dfkd.storage import layout
from dfkd.storage.base import Storage
from dfkd.storage.local import open_existing, require_existing

if TYPE_CHECKING:
    from dfkd.dataset.verification import OverBlocks

REPORT = "verify.json"
REMEDY = "run dfkd synthesize first"


def plan(manifest: Manifest, options: argparse.Namespace) -> dict[str, Any]:
    """What would be read."""
    require_existing(manifest.storage.root, REMEDY)
    return {"methods": list(manifest.methods), "root": manifest.storage.root}


def work(manifest: Manifest, options: argparse.Namespace) -> str:
    """Verify, print each problem, write verify.json under the root; returns its location."""
    from dfkd.utils.strict_json import canonical

    root = open_existing(manifest.storage.root, REMEDY)
    reports = _reports(manifest, root)
    root.put(REPORT, canonical({"schema": 1, "versions": reports}))
    problems = [problem for report in reports for problem in report["problems"]]
    for problem in problems:
        print(f"problem: {problem}", flush=True)
    if problems:
        raise CorruptionError(
            f"{root.location()}: {len(problems)} problems (listed above, and in "
            f"{root.location(REPORT)}); follow the remedy of each"
        )
    return root.location(REPORT)


def _reports(manifest: Manifest, root: Storage) -> list[dict[str, Any]]:
    """What was found of each method, by the workers of a cluster where there is one."""
    if not os.environ.get("RAY_ADDRESS"):
        return [_report(root, method, map) for method in manifest.methods]
    from dfkd.cluster.connection import connected, require_shared_storage
    from dfkd.cluster.tasks import ray_map

    with connected():
        require_shared_storage(manifest.storage.root)
        return [_report(root, method, ray_map) for method in manifest.methods]


def _report(root: Storage, method: str, over_blocks: "OverBlocks") -> dict[str, Any]:
    from dfkd.dataset import publication, published, verification

    home = root.child(layout.data(method))
    report: dict[str, Any] = {"method": method, "version": None, "shards": 0, "samples": 0}
    try:
        version = published.current(home)
        if version is None:
            location = home.location()
            return report | {"problems": [f"{location}: nothing published; run dfkd synthesize"]}
        # Not dfkd synthesize, which would make an older version current after a regeneration.
        if damaged := version.damaged_files():
            publication.repair(version)
        for block in version.damaged_blocks():
            publication.repair_block(version, block)
            damaged += [block.receipts_key, block.index_key]
        if damaged:
            print(f"{method}: version {version.id}: restored {', '.join(damaged)}", flush=True)
        problems = verification.verify(version, over_blocks)
    except CorruptionError as error:
        return report | {"problems": [str(error)]}
    report |= {"version": version.id, "shards": version.facts["shards"]}
    report |= {"samples": version.facts["samples"], "problems": problems}
    print(
        f"{method}: version {version.id}, {report['shards']} shards, {report['samples']} samples, "
        f"{len(problems)} problems",
        flush=True,
    )
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return command_line.run(
        command_line.parser("verify", __doc__ or ""), work, plan, argv, first=command_line.LIBRARIES
    )
