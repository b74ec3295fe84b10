"""What to ship: the candidates of a run, what each costs, the answer, and a copy of the choice.

`candidates.json` (schema 1) lies under the run's root; it holds the fields of `Candidates`. Each
candidate has two files, float32 and int8, and so two points of accuracy, time and size.

The answer is found by a rule of three sentences:

1. The first choice is the most accurate file, or the smallest of those that are at most one point
   (1 %) less accurate and not shown to be worse; of equally small ones the fastest. A file is shown
   to be worse if its 95 % interval over seeds ends below that of the most accurate file. Without
   the point, two seeds that differ much would make a bad file as good as any.
2. At most two more choices follow. Each is, by the same rule, the best of the files that need at
   most half the megabytes, or half the milliseconds, of all choices before, and that are more
   accurate than guessing.
3. A file that another one beats is never a choice: one that is no less accurate, no slower and no
   larger, and better in one of the three.
"""

import hashlib
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from dfkd.config.distillation import Average
from dfkd.errors import CorruptionError, LimitsError, ManifestError
from dfkd.storage import layout
from dfkd.storage.base import KEY, SMALL_OBJECT, Storage
from dfkd.utils.intervals import half_width
from dfkd.utils.strict_json import canonical, read_as
from dfkd.utils.types import CHECKED, Count, Fraction, Name, Natural, Printable, Seed, Sha256, Size

CHOICES = 3
"""Largest number of files that the answer names as choices."""
CLOSE = 0.01 + 1e-9
"""Largest difference, 0-1, at which the smaller of two files is taken that are not told apart; the
small part is for rounding."""
SHOWN = 3
"""Number of other files that a remark names; it counts the rest."""


def _inside(key: str) -> str:
    """The key; raises `ValueError` if it could name something outside the storage."""
    if not KEY.fullmatch(key):
        raise ValueError("must be names of letters, digits and ._=- joined by '/'")
    return key


Key = Annotated[str, AfterValidator(_inside)]
Amount = Annotated[float, Field(gt=0, lt=1e9)]
Precision = Literal["float32", "int8"]
PRECISIONS: tuple[Precision, ...] = ("float32", "int8")


@checked(frozen=True, kw_only=True, config=CHECKED)
class ExportedFile:
    """A candidate's file, with its scores as exported."""

    file: Key
    """Name in the candidate's folder."""
    bytes: Annotated[Size, Field(ge=1)]
    ms: Amount
    """Milliseconds for one image on one core."""
    means: Annotated[tuple[Fraction, ...], Field(min_length=1)]
    """Mean over domains of each seed; a single one for a tower without seeds."""
    domains: dict[str, tuple[Fraction, ...]]
    """The same by domain."""


@checked(frozen=True, kw_only=True, config=CHECKED)
class Files:
    """The two files of a candidate."""

    float32: ExportedFile
    int8: ExportedFile

    def of(self, precision: Precision) -> ExportedFile:
        """The file of a precision."""
        return self.float32 if precision == "float32" else self.int8


@checked(frozen=True, kw_only=True, config=CHECKED)
class Candidate:
    """A model that could be shipped."""

    name: Annotated[Printable, Name]
    kind: Literal["tower", "student"]
    classifier: Literal["zero-shot", "text-only", "distilled"]
    model: Printable
    """Name of the architecture or of the published weights."""
    folder: Key
    """Folder of the exported files, relative to the root."""
    images: Natural
    """Synthesised images that it needed."""
    seeds: tuple[Seed, ...]
    """Seeds of its trainings; empty for a tower that was not trained."""
    students: tuple[Name, ...]
    """Folders under students/, by seed; empty for a tower."""
    parameters: Count
    image_size: Count
    """Pixels of a side of the input."""
    gpu_ms: Amount | None
    """Milliseconds for one image on the GPU; None where there was none."""
    files: Files


@checked(frozen=True, kw_only=True, config=CHECKED)
class Candidates:
    """The content of `candidates.json`."""

    schema: Literal[1]
    classes: Count
    """Number of classes."""
    measure: Literal["accuracy", "agreement"]
    """Share of labelled images that are right; or, without labelled images, share of synthesised
    ones, which no candidate learned from, on which a file gives the labeller's answer."""
    average: Average
    """Whether accuracy on a domain is over its images, or the mean of its classes' accuracies."""
    source: Printable
    """Name of the images, for display."""
    images: Annotated[dict[Printable, Count], Field(min_length=1)]
    """Number of images by domain."""
    machine: Printable
    """The processor, of which one core was timed."""
    gpu: Printable | None
    candidates: Annotated[tuple[Candidate, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Point:
    """What a file reaches and costs."""

    candidate: Candidate
    precision: Precision
    mean: float
    """Mean over seeds of the mean over domains, 0-1."""
    half: float | None
    """Half the width of its 95 % interval over seeds; None for a single value."""
    ms: float
    mb: float

    @property
    def name(self) -> str:
        """The candidate's name, and `int8` for that file."""
        own = self.candidate.name
        return own if self.precision == "float32" else f"{own} {self.precision}"

    @property
    def low(self) -> float:
        """The lower end of the interval, 0-1; the mean itself if there is none."""
        return max(self.mean - (self.half or 0), 0.0)

    @property
    def high(self) -> float:
        """The upper end of the interval, 0-1; the mean itself if there is none."""
        return min(self.mean + (self.half or 0), 1.0)

    def beats(self, other: "Point") -> bool:
        """Whether the other file is worse in one of the three and better in none."""
        ours, theirs = (self.mean, -self.ms, -self.mb), (other.mean, -other.ms, -other.mb)
        return ours != theirs and all(own >= its for own, its in zip(ours, theirs, strict=True))


def read_candidates(storage: Storage) -> Candidates:
    """The content of `candidates.json` under a root.

    Raises:
        ManifestError: there is none, because the run is not finished.
        CorruptionError: it is damaged.
    """
    if not storage.exists(layout.CANDIDATES):
        raise ManifestError(
            "storage.root",
            "must hold a finished run, with candidates.json",
            storage.location(),
            "run dfkd pipeline first",
        )
    try:
        found = read_as(TypeAdapter(Candidates), storage.get(layout.CANDIDATES, SMALL_OBJECT))
        _check(found)
    except ValueError as error:
        place = storage.location(layout.CANDIDATES)
        raise CorruptionError(f"{place}: {error}; delete it and run dfkd pipeline again") from None
    return found


def _check(found: Candidates) -> None:
    """Raise `ValueError` if names repeat, or figures do not follow from those by domain."""
    names = [candidate.name for candidate in found.candidates]
    if len(set(names)) < len(names):
        raise ValueError("candidates: each name must occur once")
    for candidate in found.candidates:
        for precision in PRECISIONS:
            file = candidate.files.of(precision)
            place, values = f"{candidate.name} {precision}", max(len(candidate.seeds), 1)
            if file.domains.keys() != found.images.keys():
                raise ValueError(f"{place}: domains must be those of images")
            if {len(each) for each in (file.means, *file.domains.values())} != {values}:
                raise ValueError(f"{place}: must have a figure for each seed, {values}")
            for mean, *parts in zip(file.means, *file.domains.values(), strict=True):
                if abs(mean - statistics.fmean(parts)) > 1e-9:
                    raise ValueError(f"{place}: means must follow from the domains, got {mean}")


def points(found: Candidates) -> list[Point]:
    """The points of all files: of each candidate float32, then int8."""
    return [
        Point(
            candidate,
            precision,
            statistics.fmean(file.means),
            half_width(file.means),
            file.ms,
            file.bytes / 1e6,
        )
        for candidate in found.candidates
        for precision in PRECISIONS
        for file in [candidate.files.of(precision)]
    ]


def frontier(shown: Iterable[Point], cost: Literal["ms", "mb"]) -> list[Point]:
    """The points more accurate than all cheaper ones, from the cheapest to the most accurate."""
    steps: list[Point] = []
    for point in sorted(shown, key=lambda each: (getattr(each, cost), -each.mean)):
        if not steps or point.mean > steps[-1].mean:
            steps.append(point)
    return steps


def pick(allowed: Sequence[Point]) -> tuple[Point, list[Point]]:
    """The choice among at least one point, and all points that its accuracy is not told from.

    The latter are those whose interval reaches that of the most accurate point, which is the first.
    Where neither has an interval, a difference of one point is taken for none in the choice alone.
    """
    best, *others = sorted(allowed, key=lambda each: (-each.mean, each.mb, each.ms))
    tied = [best, *(each for each in others if each.high >= best.low)]
    close = [
        each
        for each in allowed
        if best.mean - each.mean <= CLOSE
        and (each in tied or best.half is each.half is None)
        and not any(other.beats(each) for other in allowed)
    ]
    return min(close, key=lambda each: (each.mb, each.ms, -each.mean)), tied


@dataclass(frozen=True)
class Choice:
    """A choice of the answer."""

    point: Point
    below: dict[str, float]
    """Limits by unit, MB and ms, that exclude all choices before and that this one is half of;
    empty for the first choice."""
    tied: list[Point]
    """All points that `pick` did not tell apart."""


@dataclass(frozen=True)
class Answer:
    """What to ship, in words."""

    choices: list[Choice]
    sentence: str
    """The choices and when to take which."""
    remarks: list[str]
    """Sentences that say how far the first one can be trusted."""


def answer(found: Candidates) -> Answer:
    """What to ship; the module's docstring describes the rule."""
    everything, guessing = points(found), 1 / found.classes
    first, tied = pick(everything)
    choices = [Choice(first, {}, tied)]
    while len(choices) < CHOICES:
        # Of all choices before, so that the limits exclude every one of them.
        mb = min(choice.point.mb for choice in choices)
        ms = min(choice.point.ms for choice in choices)
        cheap = [
            each
            for each in everything
            if each.mean > guessing and (2 * each.mb <= mb or 2 * each.ms <= ms)
        ]
        if not cheap:
            break
        point, tied = pick(cheap)
        below = {"MB": mb} if 2 * point.mb <= mb else {}
        below |= {"ms": ms} if 2 * point.ms <= ms else {}
        choices.append(Choice(point, below, tied))
    return Answer(
        choices, _sentence(found, choices, everything), _remarks(found, choices, everything)
    )


def amount(value: float) -> str:
    """Milliseconds or megabytes for people: `21.5`, or two digits below 1, as `0.056`."""
    return f"{value:.1f}" if value >= 0.95 else f"{value:.2g}"


def percent(value: float) -> str:
    """0.82 as `82.0 %`."""
    return f"{100 * value:.1f} %"


def described(point: Point, found: Candidates) -> str:
    """A point as `teacher int8 (81.7 %, 1.9 ms, 5.6 MB)`."""
    share = percent(point.mean) + (" agreement" if found.measure == "agreement" else "")
    return f"{point.name} ({share}, {amount(point.ms)} ms, {amount(point.mb)} MB)"


def _sentence(found: Candidates, choices: Sequence[Choice], everything: Sequence[Point]) -> str:
    """The choices and the limits for which each is meant."""
    first, *later = choices
    text = f"Ship {described(first.point, found)}"
    if not later:
        if all(first.point.beats(each) for each in everything if each is not first.point):
            return f"{text}: no other file is more accurate, faster or smaller."
        return f"{text}: no other file of use needs half its MB or half its ms."
    for number, choice in enumerate(later):
        limits = " or ".join(f"{amount(most)} {unit}" for unit, most in choice.below.items())
        before = "; then" if number == 0 else ","
        start = " unless you need less than" if number == 0 else " For less than"
        text += f"{start} {limits}{before} {described(choice.point, found)}."
    return text


def _remarks(
    found: Candidates, choices: Sequence[Choice], everything: Sequence[Point]
) -> list[str]:
    """What is uncertain about the sentence, and what lies between its choices."""
    remarks = []
    for choice in choices:
        best, *others = choice.tied
        if others and best.mean == min(each.mean for each in others):
            names = _names(choice.tied)
            remarks.append(f"No winner: {names} are equally good ({percent(best.mean)}).")
        elif others:
            taken = "" if choice.point is best else " The smallest within one point is taken."
            remarks.append(
                f"No winner: {_names(others)} cannot be told apart from {best.name} "
                f"({percent(best.mean)}), as 95 % intervals over seeds overlap.{taken}"
            )
        elif best is not choice.point:
            more = 100 * (best.mean - choice.point.mean)
            remarks.append(
                f"{best.name} is {more:.1f} points more accurate than {choice.point.name}."
            )
    between = [
        each
        for each in everything
        if any(
            each.mean > choice.point.mean
            and any(_cost(each, unit) < most for unit, most in choice.below.items())
            for choice in choices
        )
        and not any(each is choice.point or each in choice.tied for choice in choices)
        and not any(other.beats(each) for other in everything)
    ]
    if between:
        verbs = ("lies", "saves") if len(between) == 1 else ("lie", "save")
        remarks.append(
            f"Between these {verbs[0]} {_names(between)}, which {verbs[1]} less than half."
        )
    if choices[0].point.mean <= 1 / found.classes:
        remarks.append(f"No file does better than guessing ({percent(1 / found.classes)}).")
    if any(len(candidate.seeds) == 1 for candidate in found.candidates):
        remarks.append("What was trained with a single seed may differ by a few points by chance.")
    if found.measure == "agreement":
        remarks.append(
            "Without labelled images the percentages are agreement with the labeller, on "
            "synthesised images that no candidate learned from. This favours the labeller, whose "
            "own answers these are."
        )
    return remarks


def _cost(point: Point, unit: str) -> float:
    return point.mb if unit == "MB" else point.ms


def _names(named: Sequence[Point]) -> str:
    """The names of the first few points, and how many more there are."""
    names = [each.name for each in named[:SHOWN]]
    if more := len(named) - len(names):
        names.append(f"{more} more")
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


# --- limits and the copy --------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """What a device allows; None allows everything."""

    max_ms: float | None = None
    max_mb: float | None = None
    at_least: float | None = None
    """Accuracy in percent."""

    def misses(self, point: Point) -> dict[str, float]:
        """By how much a point misses each limit that excludes it, in the limit's unit."""
        over = {
            "max_ms": None if self.max_ms is None else point.ms - self.max_ms,
            "max_mb": None if self.max_mb is None else point.mb - self.max_mb,
            "at_least": None if self.at_least is None else self.at_least - 100 * point.mean,
        }
        # 100 times the float 0.57 is less than 57.
        return {name: miss for name, miss in over.items() if miss is not None and miss > 1e-9}


def nearest(shown: Sequence[Point], limits: Limits) -> Point:
    """The point whose largest miss, as a share of its limit, is smallest; then the most accurate.

    Args:
        shown: at least one point.
    """
    most = asdict(limits)
    return min(
        shown,
        key=lambda each: (
            max((miss / most[name] for name, miss in limits.misses(each).items()), default=0.0),
            -each.mean,
        ),
    )


def choose(found: Candidates, limits: Limits) -> Point:
    """The point to ship within limits, by the rule of the first choice.

    Raises:
        LimitsError: no file satisfies all of them.
    """
    everything = points(found)
    allowed = [each for each in everything if not limits.misses(each)]
    if not allowed:
        closest = nearest(everything, limits)
        options = " ".join(
            f"--{name.replace('_', '-')} {value:g}"
            for name, value in asdict(limits).items()
            if value is not None
        )
        raise LimitsError(
            f"limits: none of {len(everything)} files satisfies {options}; the nearest is "
            f"{described(closest, found)}, relax a limit or add a candidate"
        )
    return pick(allowed)[0]


@checked(frozen=True, kw_only=True, config=CHECKED)
class Shipped:
    """The content of `shipped.json`: which file was taken, and within which limits."""

    schema: Literal[1]
    candidate: Name
    folder: Key
    precision: Precision
    file: Key
    limits: Limits
    candidates_sha256: Sha256
    """Of the `candidates.json` that it was taken from."""


def read_shipped(storage: Storage) -> Shipped | None:
    """What is in `shipped/` under a root; None if nothing is.

    Raises:
        CorruptionError: `shipped.json` is damaged.
    """
    home = storage.child(layout.SHIPPED)
    if not home.exists(layout.SHIPPED_FACTS):
        return None
    try:
        return read_as(TypeAdapter(Shipped), home.get(layout.SHIPPED_FACTS, SMALL_OBJECT))
    except ValueError as error:
        place = home.location(layout.SHIPPED_FACTS)
        raise CorruptionError(f"{place}: {error}; run dfkd ship again") from None


def point_of(found: Candidates, shipped: Shipped) -> Point:
    """The point of the file that is shipped, as it is measured now."""
    (point,) = [
        each
        for each in points(found)
        if (each.candidate.name, each.precision) == (shipped.candidate, shipped.precision)
    ]
    return point


def ship(storage: Storage, point: Point, limits: Limits) -> str:
    """Copy the folder of a point's candidate to `shipped/`, whose location is returned.

    `shipped.json` is deleted first and put last, so a folder with it is complete.

    Raises:
        CorruptionError: the candidate's folder does not hold the file that was scored.
    """
    candidate, home = point.candidate, storage.child(layout.SHIPPED)
    source = storage.child(candidate.folder)
    file = candidate.files.of(point.precision)
    if not source.exists(file.file) or source.size(file.file) != file.bytes:
        raise CorruptionError(
            f"{source.location(file.file)}: must be the file of {file.bytes} bytes that was "
            "scored; delete candidates.json and run dfkd pipeline again"
        )
    keys = list(source.list())
    home.delete(layout.SHIPPED_FACTS)
    for stale in set(home.list()).difference(keys):
        home.delete(stale)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        for key in keys:
            source.get_file(key, copy)
            home.put(key, copy)
    facts: Mapping[str, Any] = {
        "schema": 1,
        "candidate": candidate.name,
        "folder": candidate.folder,
        "precision": point.precision,
        "file": file.file,
        "limits": asdict(limits),
        "candidates_sha256": hashlib.sha256(storage.get(layout.CANDIDATES)).hexdigest(),
    }
    home.put(layout.SHIPPED_FACTS, canonical(facts))
    return home.location()
