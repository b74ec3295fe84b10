"""The cost of synthesis and distillation: one object per stage, method and seed, with an entry per
process.

Records are kept apart from versions and students, in `records/{stage}-{method}[-s{seed}].json`:

    {"schema": 1, "entries": [{stage, method, seed, seconds, worker_seconds, images, bytes,
                               workers, device}, ...]}

The fields are those of `CostRecord`. Entries are in the order in which the processes ended. A
process that resumes another one adds its own entry; one that finds all work finished adds none.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from dfkd.errors import CorruptionError, DfkdError, one_line
from dfkd.storage import layout
from dfkd.storage.base import CLEANUP_ATTEMPTS, SMALL_OBJECT, MissingObject, Storage
from dfkd.utils.progress import say
from dfkd.utils.strict_json import canonical, read_as
from dfkd.utils.types import CHECKED, Natural

Stage = Literal["synthesize", "distill"]
Seconds = Annotated[float, Field(ge=0, le=1e12)]  # so that no sum overflows


@checked(frozen=True, kw_only=True, config=CHECKED)
class CostRecord:
    """The cost of one stage in one process."""

    stage: Stage
    method: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$")]
    """The method (`dfkd.config.methods.Method`)."""
    seed: Natural | None
    """The student's seed; None for a stage without one."""
    seconds: Seconds
    """Wall-clock seconds of the stage."""
    worker_seconds: Seconds
    """Seconds that workers spent on tasks (synthesize), or `seconds` x `workers` (distill)."""
    images: Natural
    """Images that were made, or seen in training (counted each time)."""
    bytes: Natural
    """Bytes of the shards or of the student that were written."""
    workers: Natural
    """Number of actors or ranks."""
    device: str
    """The name of the GPU, or `cpu`."""

    @property
    def key(self) -> str:
        """The key of the object with the entries of this stage, method and seed."""
        return _key(self.stage, self.method, self.seed)


@checked(frozen=True, kw_only=True, config=CHECKED)
class _Record:
    schema: Literal[1]
    entries: tuple[CostRecord, ...]


_RECORD = TypeAdapter(_Record)


def _key(stage: Stage, method: str, seed: int | None) -> str:
    """The key of a record, relative to the run's root."""
    return f"{layout.RECORDS}{stage}-{method}{'' if seed is None else f'-s{seed}'}.json"


@dataclass
class CostCounter:
    """The counts of a stage that is running; see `CostRecord` for the fields."""

    worker_seconds: float | None = None
    """None if every worker works from the start of the stage to its end."""
    images: int = 0
    bytes: int = 0
    workers: int = 1
    device: str = "cpu"


@contextmanager
def record_cost(
    storage: Storage, stage: Stage, method: str, seed: int | None = None
) -> Iterator[CostCounter]:
    """Time the block and append an entry for it, also if the block fails.

    The block fills the `CostCounter` that it gets. Without any image or worker's second in it, no
    entry is written.

    Args:
        storage: the run's root.

    Raises:
        CorruptionError: the existing record is damaged; raised before the block starts.
    """
    # Reading it now means that a damaged record is reported before the work and not after it.
    _entries(storage, _key(stage, method, seed))
    cost = CostCounter()
    begun = time.perf_counter()
    try:
        yield cost
    finally:
        # A failed stage has cost something too; a stage without any work leaves no entry.
        seconds = time.perf_counter() - begun
        if cost.images or cost.worker_seconds:
            spent = cost.worker_seconds
            counts = asdict(cost) | {
                "seconds": round(seconds, 3),
                "worker_seconds": round(seconds * cost.workers if spent is None else spent, 3),
            }
            # No result depends on it, and it must neither hide an error of the block nor delay it.
            record = CostRecord(stage=stage, method=method, seed=seed, **counts)
            try:
                add(storage.with_attempts(CLEANUP_ATTEMPTS), record)
            except (DfkdError, OSError) as error:
                say(f"{stage}: its cost was not recorded ({one_line(error)})")


def add(storage: Storage, entry: CostRecord) -> None:
    """Append an entry to its record under the run's root.

    If two processes append at the same moment, one entry may be lost. That is acceptable, because
    no result depends on records, and a run has only one driver.

    Raises:
        CorruptionError: the existing record is damaged.
    """
    entries = [*_entries(storage, entry.key), entry]
    tree = {"schema": 1, "entries": [asdict(each) for each in entries]}
    storage.put(entry.key, canonical(tree))


def read(storage: Storage) -> list[CostRecord]:
    """All entries under a run's root, sorted by the key of their record, then from old to new.

    Raises:
        CorruptionError: an object under `records/` was not written by `add`.
    """
    return [entry for key in storage.list(layout.RECORDS) for entry in _entries(storage, key)]


def _entries(storage: Storage, key: str) -> tuple[CostRecord, ...]:
    """The entries of a record, none if it does not exist; `CorruptionError` if it is damaged."""
    try:
        return read_as(_RECORD, storage.get(key, SMALL_OBJECT)).entries
    except MissingObject:
        return ()
    except ValueError as error:
        raise CorruptionError(
            f"{storage.location(key)}: not a record of cost ({error}); delete it, "
            "which loses nothing but these figures"
        ) from None
