"""How often an audit is right: of names that the bundled models draw, and of names they do not.

    python -m dfkd.lab.studies.audit manifests/studies/audit

All names are drawn once, in one run for each method. A run of ten classes, seven known and three
unknown, is then put together `RUNS` times from the names of a half. The threshold is chosen on one
half, where it gives the best F1 of "something is wrong with this name", and scored on the other.

With contrastive prompts a prompt also depends on the other classes, so those groups show what a run
of a hundred classes drew.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dfkd
from dfkd.models.generators.settings import bundled_names
from dfkd.models.labeller import Labeller, class_prompt
from dfkd.operations import audit
from dfkd.utils.markdown import align
from dfkd.utils.strict_json import indented

UNKNOWN = (
    "banana", "bridge", "butterfly", "cactus", "candle", "chair", "cow", "dolphin", "elephant",
    "flower", "fork", "giraffe", "ladder", "lamp", "lion", "mountain", "mushroom", "piano",
    "rabbit", "saxophone", "shark", "sofa", "spider", "spoon", "stapler", "sword", "toaster",
    "turtle", "violin", "whale",
)  # fmt: skip
"""Names that the bundled diffusion model was not trained to draw."""
METHODS = ("vanilla", "contrastive")
RUNS, KNOWN_IN_RUN, UNKNOWN_IN_RUN = 100, 7, 3
THRESHOLDS = tuple(count / 8 for count in range(1, 9))
"""The shares that eight images can have, but 0."""


def main(folder: Path, root: str = "runs/studies/audit") -> None:
    """Make the images unless they are there, and write results.json and table.md."""
    known = bundled_names()
    names = [*known, *UNKNOWN]
    draw = random.Random(0)  # noqa: S311 - a selection, no secret
    shuffled = draw.sample(known, len(known)), draw.sample(UNKNOWN, len(UNKNOWN))
    halves = {
        "thresholds": [name for kind in shuffled for name in kind[: len(kind) // 2]],
        "proof": [name for kind in shuffled for name in kind[len(kind) // 2 :]],
    }
    results: dict[str, Any] = {"halves": {key: sorted(half) for key, half in halves.items()}}
    rows = {}
    for method in METHODS:
        manifest = dfkd.read_manifest(
            "miniature",
            classes=names,
            storage={"root": root},
            prompts={"method": method},
            synthesis={"images_per_class": 8, "shard_size": 8, "batch_size": 8},
            evaluation={"data": "none"},
        )
        (built,) = dfkd.synthesize(manifest)
        labels, embeddings, _, _ = audit.read_images(built.version)
        teacher = Labeller.load(manifest.teacher, torch.device("cpu"), cache=manifest.cache)
        for half, members in halves.items():
            found = []
            for seed in range(RUNS):
                choose = random.Random(seed)  # noqa: S311
                classes = [
                    *choose.sample([each for each in members if each in known], KNOWN_IN_RUN),
                    *choose.sample([each for each in members if each in UNKNOWN], UNKNOWN_IN_RUN),
                ]
                nouns = audit.references(classes)
                template = manifest.teacher.template
                texts = teacher.encode_text(
                    [class_prompt(template, each) for each in (*classes, *nouns)]
                ).numpy()
                picked = [names.index(each) for each in classes]
                kept = np.isin(labels, picked)
                own = np.array([picked.index(each) for each in labels[kept].tolist()])
                rows_of = embeddings[kept]
                far = 1 - rows_of @ texts.T  # distances rise with it
                found += audit.judge(classes, nouns, texts, rows_of, far, own)
            rows[method, half] = found
    # One threshold for both methods.
    tuning = [row for method in METHODS for row in rows[method, "thresholds"]]
    by_threshold = {each: score(tuning, each) for each in THRESHOLDS}
    chosen = max(THRESHOLDS, key=lambda each: by_threshold[each]["f1"])
    results |= {
        "runs": RUNS,
        "chosen": chosen,
        "used": audit.NAMED,
        "thresholds": {str(each): found for each, found in by_threshold.items()},
        "proof": {method: score(rows[method, "proof"], audit.NAMED) for method in METHODS},
    }
    heads = ["prompts", "precision", "recall", "known called recognised", "unknown: not drawn"]
    lines = [[*heads, "unknown: rename", "recognised among ten only: precision", "recall"]]
    for method, each in results["proof"].items():
        shares = [
            each["precision"], each["recall"], each["known"]["recognised"],
            each["unknown"]["not drawn"], each["unknown"]["rename"],
            each["classes_only"]["precision"], each["classes_only"]["recall"],
        ]  # fmt: skip
        lines.append([method, *(f"{100 * share:.1f} %" for share in shares)])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_bytes(indented(results))
    table = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    text = "".join(f"| {' | '.join(line)} |\n" for line in table)
    (folder / "table.md").write_text(text)
    print("\n".join(align(lines)))
    print(f"chosen {chosen}, used {audit.NAMED}")


def score(rows: list[dict[str, Any]], threshold: float) -> dict[str, Any]:
    """Precision and recall of "something is wrong" at a threshold of `named`, the shares of each
    verdict of the rule as it is, and the same for a rule that looks at the run's classes alone.
    """
    unknown = np.array([row["name"] in UNKNOWN for row in rows])
    named = np.array([row["named"] for row in rows])
    alone = np.array([row["recognised"] for row in rows])
    kinds = {
        kind: {
            verdict: float(
                np.mean(
                    [
                        r["verdict"] == verdict
                        for r, u in zip(rows, unknown, strict=True)
                        if u == which
                    ]
                )
            )
            for verdict in ("recognised", "rename", "not drawn")
        }
        for kind, which in (("known", False), ("unknown", True))
    }
    return {
        **_agreement(named < threshold, unknown),
        **kinds,
        "classes_only": _agreement(alone < threshold, unknown),
    }


def _agreement(called: Any, unknown: Any) -> dict[str, float]:
    """Precision, recall and F1 of what was called wrong."""
    right = int((called & unknown).sum())
    precision, recall = right / max(int(called.sum()), 1), right / max(int(unknown.sum()), 1)
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * right / (called.sum() + unknown.sum()).item(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m dfkd.lab.studies.audit", description=__doc__)
    parser.add_argument("folder", type=Path, help="where results.json and table.md are written")
    main(parser.parse_args().folder)
