"""The work of ``jobs/fetch.py``: download published weights into the cache, or list them."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dfkd.config.manifest import Manifest
from dfkd.models.teacher_architecture import find_weights, read_architecture
from dfkd.models.weights.download import Fetched, Fetcher
from dfkd.pipeline.preflight import check_distillation
from dfkd.pipeline.required_weights import Need, hub_models, needs, towers
from dfkd.utils.progress import say

WIDTH = 80
"""Columns of the list; addresses are never wrapped."""


def fetch(manifest: Manifest, few_shot: bool, mirror: str) -> str:
    """Download missing files, verify all of them, and print the result; returns the cache's path.

    Args:
        few_shot: also fetch the weights that only few-shot training starts from.
        mirror: base URL or directory with the files by name; empty for the published addresses.
    """
    # Progress goes to stderr, apart from the result on stdout.
    fetcher = Fetcher(manifest.cache, mirror, report=say)
    for need in needs(manifest, few_shot):
        fetched = fetcher.fetch(need.artifact, need.check)
        print(f"{need.field}: {_describe_fetched(need, fetched)}", flush=True)
    for model in hub_models(manifest):
        # These libraries know only their own caches, so they download by loading.
        if model.library == "open_clip":
            tower = towers(manifest)[model.field]
            shape = read_architecture(tower.model)
            path = find_weights(tower.weights, shape, manifest.cache).path
            print(f"{model.field}: {model.id}, fetched by open_clip: {path}", flush=True)
        else:
            check_distillation(manifest)  # building the student is what makes timm download it
            print(f"{model.field}: {model.id}, fetched by {model.library}", flush=True)
    return str(Path(manifest.cache).expanduser())


def _describe_fetched(need: Need, fetched: Fetched) -> str:
    """What is known about a file in the cache: its size, its hash, and who states the hash."""
    size, status = fetched.path.stat().st_size, "was there" if fetched.reused else "fetched"
    artifact = need.artifact
    prefix_note = "" if artifact.certain else f"in its first {len(artifact.sha256)} digits "
    verdict = f"{prefix_note}as stated by {artifact.stated_by}"
    if fetched.pin:
        verdict = f"NOT VERIFIED, as nobody states it; pinned in {fetched.pin}"
    return f"{fetched.path.name} {status}, {size} bytes, sha256 {fetched.sha256} {verdict}"


def listing(manifest: Manifest, few_shot: bool) -> Iterator[str]:
    """Yield lines: a table of all files, and facts about each file."""
    required, models = needs(manifest, few_shot), hub_models(manifest)
    rows = [(each.field, each.artifact.file, *_state(each, manifest.cache)) for each in required]
    rows += [(each.field, each.id, "", each.library) for each in models]
    if rows:
        yield _row("key", "file", "bytes", "state")
        yield "-" * WIDTH
        yield from (_row(*row) for row in rows)
    else:
        yield "nothing to fetch: the manifest names no published weights"
    for need in required:
        artifact = need.artifact
        prefix = "" if artifact.certain else "begins with "
        facts = {"sha256": f"{prefix}{artifact.sha256}", "stated by": artifact.stated_by}
        # Without a stated hash the first download is pinned, so that later ones must equal it.
        if not artifact.sha256:
            facts = {"sha256": "stated by nobody: what is found is pinned"}
        yield from _facts(artifact.file, {**facts, "licence": artifact.licence}, artifact.addresses)
    for model in models:
        yield from _facts(model.id, {"fetched": f"by {model.library} itself, from its hub"}, ())


def _state(need: Need, cache: str) -> tuple[str, str]:
    """Size in bytes, if known, and whether the file is in the cache."""
    path, size = need.artifact.within(cache), need.artifact.bytes
    if path.is_file():
        return f"{path.stat().st_size:,}", "cached"
    return ("unknown" if size is None else f"{size:,}"), "missing"


def _facts(title: str, facts: Mapping[str, str], addresses: Sequence[str]) -> Iterator[str]:
    """Yield a title, each fact behind its word, and one address a line."""
    yield from ("", title)
    for word, fact in facts.items():
        first_indent = f"  {word:<11}"
        yield from textwrap.wrap(
            fact, WIDTH, initial_indent=first_indent, subsequent_indent=" " * 13
        )
    for address in addresses:
        yield f"  from       {address}"


def _row(field: str, file: str, size: str, state: str) -> str:
    """A row of the table; a long name is cut."""
    shown = file if len(file) <= 35 else f"{file[:34]}~"
    return f"{field:<21}{shown:<36}{size:>13}  {state}".rstrip()


def plan(manifest: Manifest, few_shot: bool) -> dict[str, Any]:
    """The files that a run needs, and which of them are missing now."""
    required = [each.artifact for each in needs(manifest, few_shot)]
    missing = [each for each in required if not each.within(manifest.cache).is_file()]
    return {
        "cache": manifest.cache,
        "files": [each.file for each in required],
        "missing": [each.file for each in missing],
        "missing_bytes": sum(each.bytes or 0 for each in missing),
        "missing_of_unknown_size": sum(each.bytes is None for each in missing),
        "from_hubs": [each.id for each in hub_models(manifest)],
    }
