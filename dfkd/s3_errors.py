"""What a store's refusals mean, in one line each; knows boto3's errors by their shape only."""

import re
from typing import Any

from dfkd.errors import DfkdError, InfrastructureError, ManifestError
from dfkd.objects import missing_object

BUSY = {409, 429, 500, 502, 503, 504}
"""What a store answers when the same request may succeed later; 409: another writer is at work."""
BUSY_CODES = {"RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded"}


def status(error: Any) -> int:
    """The HTTP status of a refusal, 0 if it has none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code(error: Any) -> str:
    """The code of a refusal, else its status: an answer without a body has no code."""
    return str(error.response.get("Error", {}).get("Code", "")) or str(status(error))


def busy(error: Any) -> bool:
    """Whether a refusal may pass."""
    return status(error) in BUSY or code(error) in BUSY_CODES


def redact(error: Exception) -> str:
    """Its text without what stands before the @ of a URL, where some write a password."""
    return re.sub(r"\S*@", "", str(error))


def explain(error: Any, location: str) -> DfkdError:
    """The refusal of a request about `location`, for a person."""
    reason = code(error)
    if reason in ("NoSuchKey", "NoSuchUpload", "404", "NotFound"):
        return missing_object(location)
    if reason in ("NoSuchBucket", "InvalidBucketName") or status(error) in (301, 401, 403):
        return ManifestError(
            "storage.root", "must be a bucket you may use", f"{location} ({reason})", "check it"
        )
    return InfrastructureError(
        f"storage: {location}: {reason}; run the same command again, it resumes"
    )
