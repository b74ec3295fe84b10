"""What can go wrong, as one line for a person and one exit code for a scheduler.

Every error that a user can cause or cure derives from `DfkdError`. Its text names the field (or the
object), the rule, the value, and what to do; `dfkd.pipeline.command_line` prints it and exits with
`exit_code`.
"""

import re
from enum import IntEnum
from typing import Any

SECRET_PATTERN = re.compile(
    r"""(?<=://)[^\s'"@/]+(?=@)|(?<=://)[^\s'"@:]*:[^\s'"@]*(?=@)"""
    r"""|(?<=Signature=)[^\s'"&]+|(?<=Token=)[^\s'"&]+|(?<=Credential=)[^\s'"&]+"""
    r"""|(?:AKIA|ASIA)[A-Z0-9]{16}"""
)
"""User and password of a URL, what signs a request in its query, and the id of an AWS key."""

MAX_VALUE_LENGTH = 300
"""Characters of a value that a message repeats."""


def conceal(text: str) -> str:
    """`text` with `***` in place of what could be a credential."""
    return SECRET_PATTERN.sub("***", text)


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

    def __init__(self, message: str) -> None:
        super().__init__(conceal(message))


class ManifestError(DfkdError):
    """A manifest or command line that cannot be run. Nothing has been started."""

    exit_code = Exit.USAGE

    def __init__(self, field: str, rule: str, value: object, remedy: str) -> None:
        shown = conceal(repr(value))  # before it is cut, perhaps in the middle of a secret
        shown = shown if len(shown) <= MAX_VALUE_LENGTH else f"{shown[:MAX_VALUE_LENGTH]}..."
        super().__init__(f"{field}: {rule}, got {shown}; {remedy}")
        self.field = field

    def of_section(self, found: str, section: str) -> "ManifestError":
        """The same error, with the keys of one section named as those of another.

        For sections that share the code which reads them, such as `teacher` and `text_only`.
        """
        renamed = (text.replace(f"{found}.", f"{section}.") for text in (self.field, str(self)))
        return _rebuilt(type(self), *renamed)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.field, str(self))  # to another process


def _rebuilt(kind: "type[ManifestError]", field: str, message: str) -> "ManifestError":
    error = kind.__new__(kind, message)
    error.field = field
    return error


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


class GateError(DfkdError):
    """A candidate was made, but is not good enough to become current."""

    exit_code = Exit.PARTIAL


class InfrastructureError(DfkdError):
    """Storage, disk or cluster failed; the same command may succeed later and will resume."""

    exit_code = Exit.RETRY


class LeaseError(InfrastructureError):
    """Another process holds what must be held by one at a time."""
