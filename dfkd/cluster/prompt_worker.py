"""Making the prompts of a version, part after part; each part depends on earlier ones."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from dfkd.cluster.worker import BudgetTracker, Worker, pool_of
from dfkd.config.manifest import Manifest
from dfkd.config.plan import part_count, part_name, parts_at_once
from dfkd.dataset.publication import PROMPTS_KEY
from dfkd.dataset.versions import Version
from dfkd.errors import DfkdError
from dfkd.prompts.maker import PromptMaker
from dfkd.prompts.statistics import statistics
from dfkd.utils.progress import bar


@dataclass(frozen=True)
class PromptPart:
    """The prompts of one shard of every class: the unit of work of a `PromptWorker`."""

    number: int

    @property
    def id(self) -> str:
        """The part's name in messages."""
        return f"prompts {part_name(self.number)}"


@dataclass(frozen=True)
class PromptSummary:
    """The statistics over all prompts of a version: the last unit of work of a `PromptWorker`."""

    id: str = "prompts summary"


class PromptWorker(Worker):
    """Makes prompts part after part; a new worker continues where a dead one stopped."""

    def run_task(self, unit: PromptPart | PromptSummary) -> int | None:
        """Write one part and return its number; for a `PromptSummary` write prompts.json."""
        if self._maker is None:
            base = self.version.base()
            carried = base.prompt_part if base else None
            self._maker = PromptMaker(self.manifest, self.load_teacher(), carried)
        if isinstance(unit, PromptSummary):
            names = [part_name(i) for i in range(part_count(self.manifest))]
            texts = self._maker.class_texts.cpu().numpy()
            summary = statistics(map(self.version.prompt_part, names), texts)
            self.version.seal_prompts(names, summary)
            return None
        # Prompts of a part depend on those before it, which another worker may have made.
        self._maker.remember(unit.number, self._table)
        self.version.put_prompts(part_name(unit.number), self._maker.part(unit.number))
        return unit.number

    def _table(self, part: int) -> pa.Table:
        return self.version.prompt_part(part_name(part))


def write_prompts(manifest: Manifest, version: Version, budget_tracker: BudgetTracker) -> None:
    """Write every missing part and then prompts.json.

    At most `parts_at_once` workers run, because so many parts do not depend on each other.

    Raises:
        DfkdError: a part failed at every attempt.
        BudgetError: the budget is spent.
    """
    if version.storage.exists(PROMPTS_KEY):
        return
    total = part_count(manifest)
    done = {i for i in range(total) if version.has_prompts(part_name(i))}
    with (
        pool_of(manifest, PromptWorker, version, parts_at_once(manifest)) as pool,
        bar(f"{manifest.method} prompts", total, "part", len(done)) as progress,
    ):
        units = _ready_parts(manifest, done)
        for result in pool.run(units, lambda unit: budget_tracker.allows(pool)):
            result.count(budget_tracker.cost)
            if result.result is not None:
                done.add(result.result)
                progress.update()
    budget_tracker.finish(pool)
    if pool.quarantine:
        raise DfkdError(f"prompts: {pool.quarantine[0].reason}; fix it and run again")


def _ready_parts(manifest: Manifest, done: set[int]) -> Iterator[PromptPart | PromptSummary | None]:
    """Yield each part that is not in `done`, when the parts it depends on are; None until then.

    Part n depends on parts 0 .. n - `parts_at_once`; the summary depends on all of them.
    """
    total, concurrent = part_count(manifest), parts_at_once(manifest)
    parts = [PromptPart(number) for number in range(total) if number not in done]
    units: list[PromptPart | PromptSummary] = [*parts, PromptSummary()]
    known = 0  # parts 0 .. known - 1 are done
    for unit in units:
        needed = unit.number - concurrent + 1 if isinstance(unit, PromptPart) else total
        while True:
            while known in done:
                known += 1
            if known >= needed:
                break
            yield None
        yield unit
