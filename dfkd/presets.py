"""Named settings of the method, which a manifest asks for with the key `preset`.

They say how a run proceeds, and not how large it is: number and size of images, steps and rate of
their latents, epochs and rates of the students stay the manifest's own. A preset does set how
contrastive prompts are optimised (updates, rate, batch), which is part of the method, and the pace
at which latents take their steps.
"""

from typing import Any

from dfkd.yaml import merged

PAPER: dict[str, Any] = {
    "prompts": {
        "method": ["contrastive"],
        "guard": {"weight": 0.0, "attempts": 0, "margin": 0.0},
        "contrastive": {
            "updates": 100,
            "learning_rate": 0.1,
            "batch_size": 256,
            "bank": 2048,
            "positive": "shuffle",
            "negatives": "instance",
            "initialisation": "random",
            "similarity": 1.0,
        },
    },
    "synthesis": {
        "optimizer": "adam",
        "schedule": "constant",
        "candidates": 0,
        "pace": 1.0,
        "batch_norm_weight": 0.0,
        "amortised": {"training": 0.0, "refinement": 1.0},
    },
    "distillation": {
        "labels": "live",
        "texts": "template",
        "inconsistent": 1.0,
        "augmentation": ["flip", "crop"],
    },
}
"""The paper's method, to the letter: equation 12 without a guard, flips and crops."""

BEST = merged(PAPER, {"distillation": {"texts": "styles"}})
"""The paper's method with ensemble labels, which cost next to nothing; manifests/studies/better has
what they bring."""

FAST = merged(PAPER, {"synthesis": {"pace": 4.0}})
"""A quarter of the image-steps; manifests/studies/fewer and strides have what that costs."""

PRESETS = {"paper": PAPER, "best": BEST, "fast": FAST}
