"""The notice that a node is about to be taken away, as the ranks of a training get it."""

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from ray.train import PreemptionInfo, get_preemption_info


class Notice:
    """Whether a node with a rank is about to go; all ranks learn it at the same step.

    Ray Train has the ranks agree on the answer, which takes milliseconds. A thread asks while a
    step runs, so that no step waits; the answer is then one step old.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "dfkd-notice")
        self._asked: Future[PreemptionInfo | None] | None = None

    def given(self) -> bool:
        """Whether there was a notice when this was last called. Every rank calls it at each step.

        Raises:
            RayError: another rank died.
        """
        answer, self._asked = self._asked, self._thread.submit(get_preemption_info)
        return answer is not None and answer.result() is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # All ranks have asked as often, so that the last answer comes; after an error it may not.
        self._thread.shutdown(wait=error is None)
