"""The work of `dfkd fetch`: download published weights and tokenizers into the cache."""

import socket
import ssl
import sys
import tempfile
import urllib.error
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from huggingface_hub import hf_hub_download
from open_clip.pretrained import get_pretrained_cfg

from dfkd.config.hashing import sha256_file
from dfkd.config.manifest import Manifest
from dfkd.config.paths import local_path
from dfkd.errors import (
    CorruptionError,
    DfkdError,
    InfrastructureError,
    ManifestError,
    WeightsError,
    one_line,
)
from dfkd.models.teacher_architecture import HUB, hub_files
from dfkd.models.weights.artifacts import FETCH, PIPELINE_FILES, Artifact
from dfkd.operations.preflight import check_distillation
from dfkd.operations.required_weights import (
    hub_models,
    missing_of_pipeline,
    needs,
    published_pipeline,
    towers,
)
from dfkd.storage.base import (
    DISK_FULL_ERRORS,
    Request,
    disk_full_error,
    require_disk_space,
)
from dfkd.storage.retries import RetryPolicy
from dfkd.utils.progress import say

RETRIES = RetryPolicy(attempts=5, pause=5.0)
"""Few, because each one downloads the file from its start."""
TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as dead."""
NETWORK_ERRORS = (
    urllib.error.URLError,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
    HTTPException,
)
"""Errors of Python's HTTP client; those of a disk are other kinds of OSError."""
TRANSIENT_STATUSES = (408, 425, 429)
"""HTTP statuses below 500 after which the same request may succeed later."""


def fetch(manifest: Manifest) -> str:
    """Download missing files, verify all of them, and print the result; returns the cache's path,
    or an empty text if the manifest names no published file.

    Raises:
        CorruptionError: a file has not its published hash.
        DfkdError: an address does not serve its file.
        InfrastructureError: the network, a hub or the disk failed; the same call goes on.
    """
    files, models = needs(manifest), hub_models(manifest)
    if not (files or models):
        print("nothing to fetch: all weights are bundled or files of this machine")
        return ""
    for need in files:
        print(f"{need.field}: {fetch_file(need.artifact, manifest.cache)}", flush=True)
    for model in models:
        try:
            if model.library == "diffusers":
                found = _fetch_pipeline(manifest)
            elif model.library == "open_clip":
                tower = towers(manifest)[model.field.removesuffix(".weights")]
                tag = get_pretrained_cfg(tower.model, tower.weights) or {}
                path = _fetch_first(model.field, model.id, *hub_files(tag), manifest.cache)
                found = f"{model.id}: {path}"
            elif model.library == "tokenizers":
                repository, _, file = model.id.rpartition("/")
                path = _fetch_first(model.field, model.id, repository, (file,), manifest.cache)
                found = f"{model.id}: {path}"
            else:
                check_distillation(manifest)  # timm downloads a model only by building it
                found = f"{model.id}, fetched by {model.library}"
        except ManifestError as error:
            for cause in _causes(error):  # the libraries blame the hub for this machine's disk, too
                if isinstance(cause, OSError) and cause.errno in DISK_FULL_ERRORS:
                    with disk_full_error(local_path(manifest.cache)):
                        raise cause from None
            if not _is_outage(error):
                raise
            raise InfrastructureError(
                f"{model.field}: the hub of {model.id} did not answer; run the same command again"
            ) from None
        print(f"{model.field}: {found}", flush=True)
    return str(local_path(manifest.cache))


def fetch_file(artifact: Artifact, cache: str) -> str:
    """Download a file unless it is in the cache, and verify it; returns what is known about it."""
    target = artifact.within(cache)
    target.parent.mkdir(parents=True, exist_ok=True)
    reused = target.is_file()
    # A file in the cache is verified too, because people also copy files there by hand.
    digest = _verify(target, artifact.sha256) if reused else _download(artifact, target)
    size, status = target.stat().st_size, "was there" if reused else "fetched"
    digits = len(artifact.sha256)
    prefix_note = "" if digits == 64 else f"in its first {digits} digits "
    verdict = f"{prefix_note}as stated by {artifact.stated_by}"
    return f"{target.name} {status}, {size} bytes, sha256 {digest} {verdict}"


def _verify(path: Path, published: str) -> str:
    """The sha256 of a file; raises `CorruptionError` if it does not begin with `published`."""
    digest = sha256_file(path)
    if not digest.startswith(published):
        raise CorruptionError(
            f"{path}: sha256 {digest} is not {published} that was published; "
            "delete it and run again"
        )
    return digest


def _download(artifact: Artifact, target: Path) -> str:
    """Download a file to `target`, where it appears only when it is complete and verified; returns
    its sha256.
    """
    host, before = urlsplit(artifact.address).hostname, socket.getdefaulttimeout()
    remedy = f"or copy the file to {target}"

    def send(request: Request) -> str:
        """One attempt: download all of it to `part`."""
        # Without the hash, because torch takes a body that was cut off for the whole one and then
        # complains of its hash.
        bar = sys.stderr.isatty()
        torch.hub.download_url_to_file(artifact.address, str(part), progress=bar)
        digest, size = sha256_file(part), part.stat().st_size
        if digest.startswith(artifact.sha256):
            return digest
        if size == artifact.bytes:
            raise CorruptionError(
                f"{artifact.file}: {host} sends a file whose sha256 is not {artifact.sha256}; "
                f"copy the right one to {target}"
            )
        whole = artifact.bytes or "an unknown number of"
        raise ConnectionError(
            f"sent {size} of {whole} bytes, whose sha256 is not {artifact.sha256}"
        )

    def observe(request: Request) -> None:
        if request.error:
            say(f"{artifact.file}: {host}: {request.error}")

    require_disk_space(target, artifact.bytes or 0)
    say(f"{artifact.file} from {host}")  # torch's own bar is only for terminals
    socket.setdefaulttimeout(TIMEOUT)  # torch's function has no argument for it
    try:
        with (
            disk_full_error(target, artifact.bytes or 0),
            tempfile.TemporaryDirectory(prefix="fetch-", dir=target.parent) as folder,
        ):
            part = Path(folder, target.name)
            digest: str = RETRIES.attempt("download", send, one_line, _may_pass, observe)
            part.replace(target)
            return digest
    except (*NETWORK_ERRORS, ValueError) as error:  # a redirection may lead to no address
        reason = f"{artifact.file}: {host}: {one_line(error)}"
        if _may_pass(error):
            raise InfrastructureError(f"{reason}; run the same command again, {remedy}") from None
        raise DfkdError(f"{reason}; check the address, {remedy}") from None
    finally:
        socket.setdefaulttimeout(before)


def _may_pass(error: Exception) -> bool:
    """Whether another attempt of a download from an address may succeed."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500 or error.code in TRANSIENT_STATUSES
    if isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError):
        return False
    return isinstance(error, NETWORK_ERRORS)


def _fetch_first(field: str, name: str, repository: str, files: Sequence[str], cache: str) -> str:
    """Download the first of some files that a repository of the hub has into the cache; returns its
    path.

    open_clip's own function takes the pickle whenever the download of the safetensors fails, so
    that a bad line would leave two nodes with different files.
    """
    remaining = list(files)
    while True:
        file = remaining.pop(0)
        try:
            return hf_hub_download(repository, file, cache_dir=local_path(cache) / HUB)
        except Exception as error:  # the errors of the hub's client have no common base
            if remaining and _is_missing(error):
                continue
            rule = f"the hub does not give {name} ({one_line(error)})"
            remedy = f"run {FETCH} where there is a network"
            raise WeightsError(field, rule, name, remedy) from None


def _fetch_pipeline(manifest: Manifest) -> str:
    """Download the files of a published diffusion model into a folder of the cache.

    The hub's client compares sizes only, so files with a published hash are verified here.
    """
    found = published_pipeline(manifest)
    assert found is not None  # noqa: S101 - `hub_models` has found it
    name, pipeline = found
    folder = local_path(manifest.cache) / name
    for file in PIPELINE_FILES:
        say(f"{file} of {pipeline.repository}")  # the client's own bars are only on terminals
        try:
            hf_hub_download(pipeline.repository, file, revision=pipeline.commit, local_dir=folder)
        except Exception as error:  # the errors of the hub's client have no common base
            if isinstance(error, OSError) and error.filename:
                raise  # of this machine's disk
            rule = f"the hub does not give {file} of {pipeline.repository} ({one_line(error)})"
            remedy = f"run again where there is a network, or copy the file into {folder}"
            raise WeightsError("generator.diffusers.weights", rule, name, remedy) from None
        _verify(folder / file, pipeline.sha256.get(file, ""))
    return f"{pipeline.repository} at {pipeline.commit} ({pipeline.licence}): {folder}"


def _is_missing(error: BaseException) -> bool:
    """Whether a hub has no such file, or the client is offline and its cache has none."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    return any(
        isinstance(cause, OfflineModeIsEnabled)
        or (isinstance(cause, HfHubHTTPError) and cause.response.status_code == 404)
        for cause in _causes(error)
    )


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


def plan(manifest: Manifest) -> dict[str, Any]:
    """The files that a run needs, with what is known of each, and which of them are missing now.

    The files of open_clip's and timm's models are not among them, because these libraries know
    them; they, and tokenizers, are told by their names on their hubs.
    """
    required = [(each.field, each.artifact) for each in needs(manifest)]
    missing = [each for _, each in required if not each.within(manifest.cache).is_file()]
    of_pipeline = missing_of_pipeline(manifest)
    return {
        "cache": manifest.cache,
        "files": {
            artifact.file: {
                "key": field,
                "bytes": artifact.bytes,
                "sha256": artifact.sha256,
                "stated_by": artifact.stated_by,
                "licence": artifact.licence,
                "address": artifact.address,
            }
            for field, artifact in required
        },
        "missing": [*(each.file for each in missing), *of_pipeline],
        "missing_bytes": sum(each.bytes or 0 for each in missing),
        "missing_of_unknown_size": sum(not each.bytes for each in missing) + len(of_pipeline),
        "from_hubs": {
            each.id: {"key": each.field, "licence": each.licence} for each in hub_models(manifest)
        },
    }
