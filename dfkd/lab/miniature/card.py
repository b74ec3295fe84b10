"""The model card, and the notice of the icon sets that were used."""

import json
import statistics
from pathlib import Path

import jinja2

from dfkd.lab.miniature.drawings.icons import EVALUATION
from dfkd.lab.miniature.pretraining import DataSplit
from dfkd.lab.miniature.recipe import Recipe


def write(folder: Path) -> None:
    """Write `MODEL_CARD.md`; all its numbers come from the scores in the same folder."""
    scores, diffusion = (
        json.loads((folder / name).read_text("utf-8"))
        for name in ("scores.json", "diffusion/scores.json")
    )
    environment = jinja2.Environment(  # noqa: S701 - Markdown, of the job's own numbers and names
        loader=jinja2.PackageLoader("dfkd.lab.miniature", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"n": "{:,}".format, "percent": _percent, "mean": statistics.fmean}
    text = environment.get_template("card.md.jinja").render(scores=scores, diffusion=diffusion)
    (folder / "MODEL_CARD.md").write_text(text, "utf-8")


def write_notice(recipe: Recipe, split: DataSplit, folder: Path) -> None:
    """Write `NOTICE`: every collection whose icons were used, with its author and licence."""
    described = split.catalogue.collections
    # Clip art is a collection of rows too, but none of the package.
    used = {row.collection for row in (*split.rows, *split.validation)} & described.keys()
    parts = [
        f"The models and images in this folder derive from icon sets of the npm package\n"
        f"{recipe.data.package} (https://iconify.design), all under permissive licences, and from\n"
        f"the Open Clip Art Library (https://openclipart.org), whose drawings are in the public "
        f"domain."
    ]
    for heading, prefixes in (
        ("Used for training or validation:", sorted(used)),
        ("Images of these sets are in evaluation.tar (painted, 64 px):", EVALUATION),
    ):
        collections = [described[prefix] for prefix in prefixes]
        lines = [f"- {c.title} ({c.prefix}), {c.author}, {c.licence}, {c.url}" for c in collections]
        parts.append("\n".join([heading, *sorted(lines, key=str.lower)]))
    (folder / "NOTICE").write_text("\n\n".join(parts) + "\n", "utf-8")


def _percent(share: float) -> str:
    """A share in per cent, with one digit after the point."""
    return f"{100 * share:.1f}"
