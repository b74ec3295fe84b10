"""What can go wrong, as one line for a person and one exit code for a scheduler.

Every error that a user can cause or cure derives from `DfkdError`. Its text names the field (or the
object), the rule, the value, and what to do; `dfkd.command` prints it and exits with `exit_code`.
"""

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of every job."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    PARTIAL = 3
    RETRY = 4


class DfkdError(Exception):
    """A failure with a one-line explanation; the base of all others."""

    exit_code = Exit.FAILED


class ManifestError(DfkdError):
    """A manifest or command line that cannot be run. Nothing has been started."""

    exit_code = Exit.USAGE

    def __init__(self, field: str, rule: str, value: object, remedy: str) -> None:
        super().__init__(f"{field}: {rule}, got {value!r}; {remedy}")
        self.field = field


class WeightsError(ManifestError):
    """A weight file that is missing, corrupt, or belongs to another architecture."""


class FingerprintError(DfkdError):
    """Work in progress belongs to another manifest than the one given."""

    exit_code = Exit.USAGE


class CorruptionError(DfkdError):
    """Bytes in storage are not the bytes that were written."""


class PartialError(DfkdError):
    """Everything possible was done, but some tasks are quarantined or some images failed."""

    exit_code = Exit.PARTIAL


class BudgetError(DfkdError):
    """A cap was reached; what is finished is kept, and the same command resumes."""

    exit_code = Exit.PARTIAL


class InfrastructureError(DfkdError):
    """Storage, disk or cluster failed; the same command may succeed later and will resume."""

    exit_code = Exit.RETRY
