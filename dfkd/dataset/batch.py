"""A batch of a data set, as `dfkd.dataset.loader` makes it and a training step takes it."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Images with the teacher's distances and embeddings from the time of their synthesis."""

    pixels: Tensor
    """uint8 [B, 3, H, W] in channels-last memory, the layout of the decoder and of the student."""
    distances: Tensor
    """float32 [B, M], the teacher's distances to the class texts for the image without views."""
    labels: Tensor
    """int64 [B], the class that each image was made for."""
    embeddings: Tensor
    """float16 [B, E], the teacher's unit embeddings of the images without views."""

    def pinned(self) -> "Batch":
        """A copy in page-locked memory."""
        return Batch(*(tensor.pin_memory() for tensor in vars(self).values()))
