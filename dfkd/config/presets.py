"""Named settings of the method, which a manifest selects with the key `preset`.

A preset sets how prompts are optimised and how students are trained. It does not set the number of
images, their size or their steps. The keys of a manifest override those of its preset.
"""

from typing import Any

from dfkd.utils.yaml import merge

PAPER: dict[str, Any] = {
    "prompts": {
        "method": ["contrastive"],
        "contrastive": {
            "updates": 100,
            "learning_rate": 0.1,
            "batch_size": 256,
            "bank": 2048,
        },
    },
    "synthesis": {
        "views": 8,
        "view_noise": 0.0,
    },
    "distillation": {
        "weights": "IMAGENET1K_V1",
        "warmup_epochs": 150,
        "epochs": 150,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "finetune_factor": 0.1,
        "schedule": "cosine",
        "standardise": True,
        "texts": "template",
        "augmentation": ["flip", "crop"],
    },
}
"""The paper's method: equation 12, and the students' training of A.2.

A.2 states SGD, its rates, a momentum of 0.9, and 150 + 150 epochs. It does not state the initial
weights ("the pre-trained model"), the schedule, the weight decay, the scale of the labels and the
augmentation; their values are our choice. `manifests/studies/recipe` compares schedules and scales.

The paper does not mention views, but builds on VQGAN-CLIP, which shows CLIP 32 views per step. The
expected gradient does not depend on the number of views. 8 is a compromise on cost: a step of an
image at 224 px (ViT-B/32, f16 decoder) takes 405 GFLOP with none or one, 527 with 8 and 946 with
32. On a CPU the price is higher (manifests/benchmarks/README.md). In the study
manifests/studies/views 8 make better students than one, and one than none. No noise is added to
views, because it is drawn on the CPU.
"""

BEST = merge(PAPER, {"distillation": {"texts": "styles"}})
"""The paper's method with ensemble labels, which cost almost nothing; manifests/studies/better
shows their effect, and that of more views and epochs with them. For an open vocabulary add
`distillation.target: both`, with which no loss can be told from chance."""

PRESETS = {"paper": PAPER, "best": BEST}
