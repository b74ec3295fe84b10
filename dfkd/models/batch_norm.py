"""Folding batch norms into the convolutions before them."""

from open_clip.modified_resnet import ModifiedResNet
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval


def fold_batch_norms(tower: nn.Module) -> None:
    """Put the batch norms of a CLIP's ResNet in eval mode into the convolutions before them.

    Its outputs stay the same up to rounding, and it no longer reads and writes all features once
    more for each norm. Other towers are left alone, because names of modules do not tell whether a
    norm comes right after a convolution.
    """
    if not isinstance(tower, ModifiedResNet):
        return
    pairs = [(f"conv{number}", f"bn{number}") for number in (1, 2, 3)] + [("0", "1")]
    for module in list(tower.modules()):
        children = dict(module.named_children())
        for convolution, norm in pairs:
            if isinstance(children.get(norm), nn.BatchNorm2d):
                folded = fuse_conv_bn_eval(children[convolution], children[norm])
                setattr(module, convolution, folded)
                setattr(module, norm, nn.Identity())
