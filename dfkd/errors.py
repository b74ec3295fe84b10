"""Errors: one line of text for a person and one exit code for a scheduler.

Every error that a user can cause or fix derives from `DfkdError`. Its text names the field (or the
object), the rule, the value and the remedy. `dfkd.commands.command_line` prints the text and exits
with `exit_code`.
"""

import errno
import re
from enum import IntEnum
from typing import Any

SECRET_PATTERN = re.compile(
    r"""(?<=://)[^\s'"/]+(?=@)|(?<=://)[^\s'"@:]{0,256}:[^\s'"]{0,1024}(?=@)"""
    r"""|(?i:(?<=signature=)|(?<=token=)|(?<=credential=)|(?<=password=)|(?<=secret=)"""
    r"""|(?<=api_key=)|(?<=apikey=)|(?<=[?&;]sig=))[^\s'"&;]+"""
    r"""|(?<=AccountKey=)[^\s'";]+|(?:AKIA|ASIA)[A-Z0-9]{16}|\bhf_[A-Za-z0-9]{20,}"""
    r"""|(?i:(?<=bearer ))[^\s'"]+"""
)
"""Matches user and password in a URL, signatures and tokens in its query, and keys of Azure, AWS
and Hugging Face. Runs are bounded, so that the time does not grow with the square of the text."""

MAX_VALUE_LENGTH = 300
"""Maximal number of characters of a value that a message repeats."""


DEFECTS = (TypeError, AttributeError, LookupError, NameError, AssertionError)
"""Errors of a program, which a repetition meets again."""

PERMANENT_ERRORS = frozenset(
    {
        *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST),
        *(errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS),
    }
)
"""Errors of the operating system that the same command would meet again."""


def conceal(text: str) -> str:
    """`text` with `***` in place of every possible credential."""
    return SECRET_PATTERN.sub("***", text)


def printable(text: str) -> str:
    """The text with escapes for control characters, which a terminal would obey; keeps lines."""
    return "".join(
        letter
        if letter.isprintable() or letter in "\n\t"
        else letter.encode("unicode_escape").decode()
        for letter in text
    )


def printable_line(text: str) -> str:
    """The text as `printable` gives it, with escapes for line breaks and tabs too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def shorten(text: str, length: int = 160) -> str:
    """`text` in one line of at most `length` characters, with `***` for credentials."""
    # Concealed before it is cut: half of a URL would hide its password from the pattern.
    return conceal(" ".join(text.split()))[:length]


def one_line(error: BaseException) -> str:
    """The text of a library's error in one line of at most 160 characters; its class if empty."""
    return shorten(str(error)) or type(error).__name__


def as_utf8(text: str) -> str:
    """The text with backslash escapes for what UTF-8 lacks, such as a file name's other bytes."""
    return text.encode(errors="backslashreplace").decode()


class Exit(IntEnum):
    """Exit codes of every job."""

    DONE = 0
    FAILED = 1
    """The last line on stderr says why."""
    USAGE = 2
    """The manifest or the command line is wrong."""
    PARTIAL = 3
    """Something is quarantined, unreadable, refused or over budget; the rest is done."""
    RETRY = 4
    """Storage, disk, cluster or a download failed; the same command resumes."""
    INTERRUPTED = 130
    """A person pressed Ctrl-C; the same command resumes."""
    TERMINATED = 143
    """The process got SIGTERM; the same command resumes."""


class DfkdError(Exception):
    """A failure with a one-line explanation; the base class of all errors here."""

    exit_code = Exit.FAILED

    def __init__(self, message: str) -> None:
        super().__init__(conceal(printable(message)))


def may_pass(error: BaseException) -> bool:
    """Whether a repetition may succeed after an error of code, of a machine or of a library."""
    if isinstance(error, OSError):
        return error.errno not in PERMANENT_ERRORS
    return not isinstance(error, (DfkdError, *DEFECTS))


class _Shown(str):
    """The finished text of a value, which an unpickled error shows as it is."""

    def __repr__(self) -> str:
        return str(self)


class ManifestError(DfkdError):
    """The manifest or the command line is invalid. Nothing has been started."""

    exit_code = Exit.USAGE

    def __init__(self, field: str, rule: str, value: object, remedy: str) -> None:
        shown = conceal(repr(value))  # before the cut, which may hide half of a secret from it
        shown = shown if len(shown) <= MAX_VALUE_LENGTH else f"{shown[:MAX_VALUE_LENGTH]}..."
        super().__init__(f"{field}: {rule}, got {shown}; {remedy}")
        self.field = field
        self.parts = (field, rule, _Shown(shown), remedy)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.parts


class WeightsError(ManifestError):
    """A weight file that is missing, corrupt, or belongs to another architecture."""


class FingerprintError(DfkdError):
    """Work in progress belongs to another manifest than this one."""

    exit_code = Exit.USAGE


class CorruptionError(DfkdError):
    """An object in storage differs from what was written."""


class PartialError(DfkdError):
    """The job has finished, but some tasks are quarantined or some images failed."""

    exit_code = Exit.PARTIAL


class BudgetError(DfkdError):
    """The budget is used up. Finished work is kept, and the same command resumes."""

    exit_code = Exit.PARTIAL


class GateError(DfkdError):
    """A new version was made but is not good enough to become the current one."""

    exit_code = Exit.PARTIAL


class LimitsError(DfkdError):
    """No candidate satisfies the limits of a device."""

    exit_code = Exit.PARTIAL


class InfrastructureError(DfkdError):
    """Storage, disk, cluster or a download failed. The same command resumes, and may succeed."""

    exit_code = Exit.RETRY


class LeaseError(InfrastructureError):
    """Another process holds the lease."""
