"""The work of ``jobs/fetch.py``: download published weights into the cache."""

from typing import Any

from dfkd.config.manifest import Manifest
from dfkd.models.teacher_architecture import find_weights, read_architecture
from dfkd.models.weights.download import Fetched, Fetcher
from dfkd.pipeline.preflight import check_distillation
from dfkd.pipeline.required_weights import Need, hub_models, needs, towers
from dfkd.utils.progress import say
from dfkd.utils.types import local_path


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
    return str(local_path(manifest.cache))


def _describe_fetched(need: Need, fetched: Fetched) -> str:
    """What is known about a file in the cache: its size, its hash, and who states the hash."""
    size, status = fetched.path.stat().st_size, "was there" if fetched.reused else "fetched"
    artifact = need.artifact
    prefix_note = "" if artifact.certain else f"in its first {len(artifact.sha256)} digits "
    verdict = f"{prefix_note}as stated by {artifact.stated_by}"
    if fetched.pin:
        verdict = f"NOT VERIFIED, as nobody states it; pinned in {fetched.pin}"
    return f"{fetched.path.name} {status}, {size} bytes, sha256 {fetched.sha256} {verdict}"


def plan(manifest: Manifest, few_shot: bool) -> dict[str, Any]:
    """The files that a run needs, with what is known of each, and which of them are missing now."""
    required = [(each.field, each.artifact) for each in needs(manifest, few_shot)]
    missing = [each for _, each in required if not each.within(manifest.cache).is_file()]
    return {
        "cache": manifest.cache,
        "files": {
            artifact.file: {
                "key": field,
                "bytes": artifact.bytes,
                "sha256": artifact.sha256 or "stated by nobody: what is found is pinned",
                "stated_by": artifact.stated_by,
                "licence": artifact.licence,
                "addresses": artifact.addresses,
            }
            for field, artifact in required
        },
        "missing": [each.file for each in missing],
        "missing_bytes": sum(each.bytes or 0 for each in missing),
        "missing_of_unknown_size": sum(each.bytes is None for each in missing),
        "from_hubs": {each.id: each.field for each in hub_models(manifest)},
    }
