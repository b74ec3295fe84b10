"""Fetch the published weights and tokenizers of a manifest into its cache, and verify them."""

import argparse
from collections.abc import Sequence
from typing import Any

from dfkd.commands import command_line
from dfkd.config.manifest import Manifest


def plan(manifest: Manifest, options: argparse.Namespace) -> dict[str, Any]:
    """The files that a run needs, and which of them are missing now."""
    from dfkd.operations import fetching

    return fetching.plan(manifest)


def work(manifest: Manifest, options: argparse.Namespace) -> str:
    """Fetch missing files and verify all; returns the cache's path."""
    from dfkd.operations import fetching

    return fetching.fetch(manifest)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return command_line.run(command_line.parser("fetch", __doc__ or ""), work, plan, argv)
