"""Make a few images of each class, and say whether the run is worth its time."""

import argparse
from collections.abc import Sequence
from typing import Any

from dfkd.commands import command_line
from dfkd.config.manifest import Manifest
from dfkd.config.plan import AUDIT_IMAGES, image_count, task_count


def plan(manifest: Manifest, options: argparse.Namespace) -> dict[str, Any]:
    """What would be made, and where."""
    from dfkd.operations.audit import small
    from dfkd.operations.preflight import check_synthesis, check_towers

    few = small(manifest, options.images)
    check_synthesis(few)
    check_towers(few)
    return {
        "method": few.method,
        "root": few.storage.root,
        "tasks": task_count(few),
        "images": image_count(few),
    }


def work(manifest: Manifest, options: argparse.Namespace) -> str:
    """Audit the classes; the last line is the verdict, so what is written is told before it."""
    from dfkd.operations.audit import answer, audit, small
    from dfkd.storage.local import open_storage
    from dfkd.utils.markdown import align

    found = audit(manifest, options.images)
    lines = [["class", "verdict", "named", "recognised", "taken for"]]
    for row in found["classes"]:
        taken = ", ".join(f"{name} {count}" for name, count in row["taken_for"].items())
        shares = (f"{100 * row[key]:.0f} %" for key in ("named", "recognised"))
        lines.append([row["name"], row["verdict"], *shares, taken])
    print("\n".join(line.rstrip() for line in align(lines)))
    if found["hours"] is not None:
        print(
            f"{found['images']} images of the whole run take up to {found['hours']:.2f} hours at "
            f"{found['images_per_second']:.2f} images/s with {found['workers']} workers; "
            "students come on top"
        )
    root = open_storage(small(manifest, options.images).storage.root)
    print(f"wrote {root.location('audit.html')}")
    print(answer(found["classes"], command_line.again("pipeline", options)), flush=True)
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = command_line.parser("audit", __doc__ or "")
    arguments.add_argument(
        "--images",
        type=command_line.at_least(1),
        default=AUDIT_IMAGES,
        metavar="N",
        help="images of a class (%(default)s)",
    )
    return command_line.run(arguments, work, plan, argv, first=command_line.LIBRARIES)
