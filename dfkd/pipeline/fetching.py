"""The work of `jobs/fetch.py`: download published weights into the cache."""

from collections.abc import Iterator
from typing import Any

from open_clip.pretrained import get_pretrained_cfg

from dfkd.config.manifest import Manifest
from dfkd.config.paths import local_path
from dfkd.errors import InfrastructureError, ManifestError
from dfkd.models.teacher_architecture import download_tag
from dfkd.models.weights.download import Fetched, Fetcher
from dfkd.models.weights.http import TRANSIENT_STATUSES
from dfkd.pipeline.preflight import check_distillation
from dfkd.pipeline.required_weights import HubModel, Need, hub_models, needs, towers
from dfkd.utils.progress import say


def fetch(manifest: Manifest, mirror: str) -> str:
    """Download missing files, verify all of them, and print the result; returns the cache's path,
    or an empty text if the manifest names no published file.

    Args:
        mirror: directory with the files by name; empty for the published addresses.

    Raises:
        InfrastructureError: the network, a hub or the disk failed; the same call resumes.
    """
    # Progress goes to stderr, apart from the result on stdout.
    fetcher = Fetcher(manifest.cache, mirror, report=say)
    files, models = needs(manifest), hub_models(manifest)
    if not (files or models):
        print("nothing to fetch: all weights are bundled or files of this machine")
        return ""
    for need in files:
        fetched = fetcher.fetch(need.artifact, need.check)
        print(f"{need.field}: {_describe_fetched(need, fetched)}", flush=True)
    for model in models:
        try:
            print(f"{model.field}: {_fetch_from_hub(manifest, model)}", flush=True)
        except ManifestError as error:
            if not _is_outage(error):
                raise
            raise InfrastructureError(
                f"{model.field}: the hub of {model.id} did not answer; run the same command again"
            ) from None
    return str(local_path(manifest.cache))


def _fetch_from_hub(manifest: Manifest, model: HubModel) -> str:
    """Make a library download a model into its own cache; returns a description."""
    # These libraries know only their own caches, so they download by loading.
    if model.library == "open_clip":
        tower = towers(manifest)[model.field]
        tag = get_pretrained_cfg(tower.model, tower.weights) or {}
        path = download_tag(model.field, tag, manifest.cache)
        return f"{model.id}, fetched by open_clip: {path}"
    check_distillation(manifest)  # building the student is what makes timm download it
    return f"{model.id}, fetched by {model.library}"


def _is_outage(error: BaseException) -> bool:
    """Whether a hub was unreachable or out of order, so that another attempt may succeed."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    # Libraries wrap the hub's error in errors of their own, and so does this project.
    chain = list(_causes(error))
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in chain):
        return False
    for cause in chain:
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            return status >= 500 or status in TRANSIENT_STATUSES
    # Raised by the hub's client after its retries, if the file is not in its cache either.
    if any(isinstance(cause, LocalEntryNotFoundError) for cause in chain):
        return True
    # By name, because the client raises these of whichever HTTP library it uses.
    kinds = {kind.__name__ for cause in chain for kind in type(cause).__mro__}
    return not kinds.isdisjoint({"NetworkError", "TimeoutException", "RemoteProtocolError"})


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, the one during whose handling it was raised, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _describe_fetched(need: Need, fetched: Fetched) -> str:
    """What is known about a file in the cache: its size, its hash, and who states the hash."""
    size, status = fetched.path.stat().st_size, "was there" if fetched.reused else "fetched"
    artifact = need.artifact
    prefix_note = "" if artifact.certain else f"in its first {len(artifact.sha256)} digits "
    verdict = f"{prefix_note}as stated by {artifact.stated_by}"
    if not artifact.sha256:
        verdict = f"NOT VERIFIED, as nobody states it; pinned in {fetched.pin}"
    return f"{fetched.path.name} {status}, {size} bytes, sha256 {fetched.sha256} {verdict}"


def plan(manifest: Manifest) -> dict[str, Any]:
    """The files that a run needs, with what is known of each, and which of them are missing now."""
    required = [(each.field, each.artifact) for each in needs(manifest)]
    missing = [each for _, each in required if not each.within(manifest.cache).is_file()]
    return {
        "cache": manifest.cache,
        "files": {
            artifact.file: {
                "key": field,
                "bytes": artifact.bytes,
                "sha256": artifact.sha256 or None,
                "stated_by": artifact.stated_by if artifact.sha256 else None,
                "licence": artifact.licence,
                "address": artifact.address,
            }
            for field, artifact in required
        },
        "missing": [each.file for each in missing],
        "missing_bytes": sum(each.bytes or 0 for each in missing),
        "missing_of_unknown_size": sum(each.bytes is None for each in missing),
        "from_hubs": {each.id: each.field for each in hub_models(manifest)},
    }
