"""The interface of what makes the pixels of a shard."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor

from dfkd.prompts.conditions import StoredPrompt
from dfkd.synthesis.request import Synthesised


class ImageSource(ABC):
    """Makes the pixels of images.

    Attributes:
        section: section of the manifest whose `batch_size` bounds the memory of a batch.
        whole_part: whether `make` must get all images of a part in one call (inversion methods).
    """

    section: str
    whole_part: bool

    @abstractmethod
    def make(self, prompts: Sequence[StoredPrompt], seeds: Sequence[int]) -> Synthesised:
        """The images of a batch; each seed belongs to one image."""

    def limit(self, size: int) -> None:  # noqa: B027 - may stay empty
        """Expect at most `size` images in a batch from here on."""

    def state(self) -> dict[str, Tensor]:
        """The state that the next part of a chained method needs; empty for other methods."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 - may stay empty
        """Continue from the `state()` after an earlier part."""
