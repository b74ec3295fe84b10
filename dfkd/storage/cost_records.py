"""What a run cost: for each stage, method and seed one object with an entry for each process.

Records lie beside versions and students, never in them: `records/{stage}-{method}[-s{seed}].json`,

    {"schema": 1, "entries": [{stage, method, seed, seconds, worker_seconds, images, bytes,
                               workers, device}, ...]}

with the fields of `CostRecord`, in the order in which the processes ended. A run that resumes
another adds a second entry; one that finds everything finished adds none.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from dfkd.errors import CorruptionError
from dfkd.storage import layout
from dfkd.storage.local import Storage
from dfkd.utils.strict_json import canonical
from dfkd.utils.types import CHECKED, Natural

Stage = Literal["synthesize", "distill", "evaluate"]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@checked(frozen=True, kw_only=True, config=CHECKED)
class CostRecord:
    """What one process spent on one stage."""

    stage: Stage
    method: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$")]
    """The method (`dfkd.config.methods.Method`); `zero-shot` for an evaluation of the teacher."""
    seed: Natural | None
    """Of the student; None where the stage has none."""
    seconds: Seconds
    """From the start of the stage to its end on a clock at the wall."""
    worker_seconds: Seconds
    """Summed over workers: at work on tasks (synthesize), else `seconds` times workers."""
    images: Natural
    """Made, seen in training (each time that one is), or scored, by this process and its workers.
    """
    bytes: Natural
    """Of the shards or the student that were written; 0 in an evaluation."""
    workers: Natural
    """Actors or ranks; 1 where the driver works itself."""
    device: str
    """`cpu`, or the name of the GPU."""

    @property
    def key(self) -> str:
        """The object that holds this entry and those of the same stage, method and seed."""
        return _key(self.stage, self.method, self.seed)


@checked(frozen=True, kw_only=True, config=CHECKED)
class _Record:
    schema: Literal[1]
    entries: tuple[CostRecord, ...]


def _key(stage: Stage, method: str, seed: int | None) -> str:
    return f"{layout.RECORDS}{stage}-{method}{'' if seed is None else f'-s{seed}'}.json"


@dataclass
class CostCounter:
    """What is counted while a stage runs; see `CostRecord`."""

    worker_seconds: float | None = None
    """None where every worker is at work from the start of the stage to its end."""
    images: int = 0
    bytes: int = 0
    workers: int = 1
    device: str = "cpu"


@contextmanager
def record_cost(
    storage: Storage, stage: Stage, method: str, seed: int | None = None
) -> Iterator[CostCounter]:
    """Time what is done inside and leave an entry for it, also where it fails half-way.

    No entry if the `CostCounter` that is given then still counts no image and no worker's second.

    Args:
        storage: the run's root.

    Raises:
        CorruptionError: the record that is there is damaged; before anything is done.
    """
    _entries(storage, _key(stage, method, seed))
    cost = CostCounter()
    begun = time.perf_counter()
    try:
        yield cost
    finally:
        seconds = time.perf_counter() - begun
        if cost.images or cost.worker_seconds:
            spent = cost.worker_seconds
            add(
                storage,
                CostRecord(
                    stage=stage,
                    method=method,
                    seed=seed,
                    seconds=round(seconds, 3),
                    worker_seconds=round(seconds * cost.workers if spent is None else spent, 3),
                    images=cost.images,
                    bytes=cost.bytes,
                    workers=cost.workers,
                    device=cost.device,
                ),
            )


def add(storage: Storage, entry: CostRecord) -> None:
    """Append an entry to its record under the run's root.

    Of two processes that append at the same moment one may be lost: records are no part of what a
    run promises, and a run has one driver.

    Raises:
        CorruptionError: the record that is there is damaged.
    """
    entries = [*_entries(storage, entry.key), entry]
    tree = {"schema": 1, "entries": [asdict(each) for each in entries]}
    storage.put(entry.key, canonical(tree))


def read(storage: Storage) -> list[CostRecord]:
    """All entries under a run's root, by stage, method and seed as text, oldest first in each.

    Raises:
        CorruptionError: an object under `records/` is none that `add` writes.
    """
    return [entry for key in storage.list(layout.RECORDS) for entry in _entries(storage, key)]


def _entries(storage: Storage, key: str) -> tuple[CostRecord, ...]:
    if not storage.exists(key):
        return ()
    try:
        entries = TypeAdapter(_Record).validate_json(storage.get(key), strict=True).entries
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise _damaged(storage, key, f"{place}: {first['msg']}") from None
    if any(entry.key != key for entry in entries):
        raise _damaged(storage, key, "an entry belongs elsewhere")
    return entries


def _damaged(storage: Storage, key: str, problem: str) -> CorruptionError:
    return CorruptionError(
        f"{storage.location(key)}: not a record of cost ({problem}); delete it, "
        "which loses nothing but these figures"
    )
