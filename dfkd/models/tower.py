"""An image tower as a classifier, with the classes' vectors folded in."""

import copy

from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd.models.labeller import Labeller


class TowerClassifier(nn.Module):
    """Maps pixels float32 [N, 3, S, S] in [0, 1] to distances float32 [N, M]; smaller is closer.

    A distance is half the square of the angle between the image's embedding and a class's vector,
    as `dfkd.models.labeller.distances`, in operators that ONNX has too.
    """

    mean: Tensor
    std: Tensor
    vectors: Tensor

    def __init__(self, tower: Labeller, vectors: Tensor) -> None:
        """A copy of the tower on the CPU, in evaluation mode.

        Args:
            vectors: a unit vector [M, E] for each class.
        """
        super().__init__()
        # Branches that only the training needs are merged, as Apple advises for MobileCLIP.
        self.visual: nn.Module = reparameterize_model(copy.deepcopy(tower.visual).cpu())
        self.register_buffer("mean", tower.mean.cpu())
        self.register_buffer("std", tower.std.cpu())
        self.register_buffer("vectors", vectors.cpu())
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """The distances."""
        embeddings = F.normalize(self.visual((pixels - self.mean) / self.std), dim=1)
        return (embeddings @ self.vectors.T).clamp(-1, 1).acos().square() / 2
