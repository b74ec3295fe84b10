"""Tables of accuracies for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from dfkd.evaluation.results import Spread, images_of
from dfkd.utils.markdown import align

HEADS = {"images": "accuracy, %", "classes": "class mean, %"}
"""What the figures are, by `average`."""


def table(results: Mapping[str, Any]) -> str:
    """Accuracies in percent as text, without a final newline.

    There is one line for each domain, and one column for each model and method. Below stand the
    mean over domains and its standard deviation over seeds (if there are several).

    Args:
        results: the content of `results.json`.
    """
    summaries, images = results["summary"], images_of(results)
    # The scores of the model `teacher` are the labeller's.
    own = results.get("labeller", ["teacher"]) == ["teacher"]
    models = [
        "labeller" if line["model"] == "teacher" and not own else line["model"]
        for line in summaries
    ]
    lines = [
        ["", *models, ""],
        [HEADS[results["average"]], *(line["method"] for line in summaries), "images"],
    ]
    for name, count in images.items():
        lines.append([name, *(_percent(s["domains"].get(name)) for s in summaries), str(count)])
    lines.append(["mean", *map(_percent, summaries), str(sum(images.values()))])
    if any(line["std"] is not None for line in summaries):
        stds = (line["std"] for line in summaries)
        lines.append(["± over seeds", *("-" if s is None else f"{100 * s:.1f}" for s in stds), ""])
    return ruled(align(lines), 2)


def ruled(lines: Sequence[str], heads: int) -> str:
    """The lines as one text, with a rule below the first `heads` of them."""
    return "\n".join([*lines[:heads], "-" * max(map(len, lines)), *lines[heads:]])


def _percent(accuracy: Spread | None) -> str:
    """The mean in percent; a dash if nothing was scored."""
    return "-" if accuracy is None else f"{100 * accuracy['mean']:.1f}"
