"""The connection to Azure Blob or Google Cloud Storage: obstore's clients, and readable errors.

obstore binds Rust's object_store, which finds credentials in the environment and on the machine.
Its own retries are off: they cannot be observed, they leave out HTTP 429 and a conditional write
whose connection broke, and they hide that an earlier attempt of such a write may have succeeded.

A forked process cannot use its parent's storage: obstore's threads do not survive the fork.
"""

import os
import re
from dataclasses import dataclass, field
from typing import Any

import obstore.store
from obstore.exceptions import BaseError

from dfkd.errors import DfkdError, InfrastructureError, ManifestError
from dfkd.storage.base import missing_object, refused_request
from dfkd.storage.bucket import BucketConnection

STORES: dict[str, Any] = {"az": obstore.store.AzureStore, "gs": obstore.store.GCSStore}
TOTAL_SECONDS = 3600
"""Timeout of a whole request; the library's own limit of 30 seconds would cut large bodies off."""
BUSY_STATUSES = {408, 429, 500, 502, 503, 504, 507}
"""HTTP statuses after which the same request may succeed."""
ENDPOINTS = ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT", "GOOGLE_BASE_URL")
"""Variables of the environment from which obstore takes another endpoint than the service's own."""
MISSING_BUCKET = ("ContainerNotFound", "NoSuchBucket")
REFUSED = (401, 403)
BAD_NAMES = ("EmptySegment", "BadSegment")
"""obstore cannot list a prefix that holds an object with such a name."""


@dataclass
class ObstoreConnection(BucketConnection):
    """The clients of a storage and all of its children."""

    _clients: dict[float, Any] = field(default_factory=dict)
    """Clients by their timeout for an answer."""

    def client(self, scheme: str, bucket: str, patience: float) -> Any:
        """obstore's client, which waits at most `patience` seconds for an answer to begin.

        Raises:
            ManifestError: the credentials or the endpoint in the environment cannot be read.
        """
        if patience not in self._clients:
            # Options of the argument `client_options` would replace those of the environment.
            options = {
                "connect_timeout": f"{int(self.limits.connect * 1000)}ms",
                "read_timeout": f"{int(patience * 1000)}ms",
                "timeout": f"{TOTAL_SECONDS}s",
            }
            options |= {"allow_http": "true"} if _plain_http() else {}
            try:
                self._clients[patience] = STORES[scheme](
                    bucket, config=options, retry_config={"max_retries": 0}
                )
            except BaseError as error:
                raise no_credentials(scheme, error) from None
        return self._clients[patience]


def _plain_http() -> bool:
    """Whether the environment names an endpoint without encryption.

    Raises:
        ManifestError: an endpoint is no URL, on which obstore would panic.
    """
    given = {name: os.environ[name] for name in ENDPOINTS if os.environ.get(name)}
    for name, address in given.items():
        if not address.startswith(("http://", "https://")):
            # What stands before an @ may be a password.
            raise ManifestError(
                name, "must be an http(s) URL", address.rpartition("@")[2], "fix or unset it"
            )
    return any(address.startswith("http://") for address in given.values())


def _headline(error: Exception) -> str:
    """The text of an error without the dump of the request behind it."""
    return str(error).partition("Debug source:")[0]


def status(error: Exception) -> int:
    """The HTTP status in obstore's text of an error; 0 if there was no answer."""
    match = re.search(r"\bcode: (\d{3})\b", _headline(error))
    return int(match[1]) if match else 0


def reason(error: Exception) -> str:
    """One word for an error: the store's code, the HTTP status, or the kind of failure.

    Nothing else of obstore's text is ever shown, because its URLs may hold a signature.
    """
    if match := re.search(r"<Code>(\w+)</Code>", str(error)):
        return match[1]
    if number := status(error):
        return str(number)
    dump = str(error).partition("Debug source:")[2]
    match = re.search(r"HttpError {\s*kind: (\w+)", dump) or re.search(r"source: (\w+)", dump)
    return match[1] if match else type(error).__name__


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    return status(error) in BUSY_STATUSES or "HTTP error" in _headline(error)


def no_credentials(scheme: str, error: Exception) -> ManifestError:
    """The error for credentials that are missing or cannot be read."""
    return ManifestError(
        "storage.root",
        f"needs credentials for {scheme}://",
        reason(error),
        "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or for gs:// "
        "GOOGLE_APPLICATION_CREDENTIALS, or use a machine that has an identity",
    )


def explain(error: Exception, scheme: str, location: str) -> DfkdError:
    """The `DfkdError` for obstore's error of a request about `location`."""
    word = reason(error)
    if "token request" in _headline(error):
        return no_credentials(scheme, error)
    if word in MISSING_BUCKET or status(error) in REFUSED:
        return ManifestError(
            "storage.root", "must be a bucket you may use", f"{location} ({word})", "check it"
        )
    if word in BAD_NAMES:
        return ManifestError(
            "storage.root",
            "must hold no object that has an empty or relative part in its name",
            f"{location} ({word})",
            "remove the object or give another prefix",
        )
    if isinstance(error, FileNotFoundError):
        return missing_object(location)
    if status(error) and not is_transient(error):
        return refused_request(f"{location} ({word})")
    return InfrastructureError(
        f"storage: {location}: {word}; run the same command again, it resumes"
    )
