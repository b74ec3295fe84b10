"""Remove what nobody needs any more: old versions with their students, and abandoned work."""

import argparse
from collections.abc import Sequence
from typing import Any

from dfkd.commands import command_line
from dfkd.config.manifest import Manifest
from dfkd.errors import printable_line
from dfkd.storage.local import open_existing, open_to_read, require_existing

REPORT = "clean.json"
REMEDY = "run dfkd synthesize first"
KEEP = 3
"""Default of --keep: number of versions that stay."""
GRACE = 24 * 3600.0
"""Default of --grace: seconds for which new objects are left alone."""


def plan(manifest: Manifest, options: argparse.Namespace) -> dict[str, Any]:
    """Every object that would be removed, with its size, and why the other versions are kept."""
    from dfkd.operations import garbage_collection

    root = manifest.storage.root
    require_existing(root, REMEDY)
    planned = garbage_collection.plan(open_to_read(root), manifest, options.keep, options.grace)
    return planned.as_dict()


def work(manifest: Manifest, options: argparse.Namespace) -> str:
    """Remove the objects, print what was removed, and write clean.json; returns its location."""
    from dfkd.operations import garbage_collection, sweep
    from dfkd.storage.lease import holding
    from dfkd.utils.strict_json import canonical

    root, keep = open_existing(manifest.storage.root, REMEDY), options.keep
    with holding(root, "clean") as lease:
        planned = garbage_collection.plan(root, manifest, keep, options.grace)
        for key, reason in planned.kept.items():
            print(printable_line(f"keep {key}: {reason}"), flush=True)
        for removal in planned.removals:
            what = f"{len(removal.entries)} objects, {removal.bytes} bytes"
            print(printable_line(f"remove {removal.what}: {removal.why}, {what}"))
        objects, size = sweep.remove(root, manifest, planned, keep, options.grace, lease.fence)
        print(f"removed {objects} objects, {size} bytes", flush=True)
        # What has come into use since the plan is not removed.
        removed = {"objects": objects, "bytes": size}
        root.put(REPORT, canonical({"schema": 1, **planned.as_dict(), "removed": removed}))
    return root.location(REPORT)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = command_line.parser("clean", __doc__ or "")
    arguments.add_argument(
        "--keep",
        type=command_line.at_least(1),
        default=KEEP,
        metavar="N",
        help=f"versions to keep, the current one included; default: {KEEP}",
    )
    arguments.add_argument(
        "--grace",
        type=command_line.seconds(zero=True),
        default=GRACE,
        metavar="SECONDS",
        help=f"leave alone whatever is younger (default {GRACE:.0f})",
    )
    return command_line.run(arguments, work, plan, argv)
