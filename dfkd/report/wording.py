"""The headline of a page, the figures below it, and the format of every number."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dfkd.export.choice import Candidates, amount, answer
from dfkd.report.facts import Facts, TrainedStudent

MILLION = 1_000_000


def verdict(found: Candidates) -> Markup:
    """The headline of a page about candidates: the first choice."""
    name, many = answer(found).choices[0].point.name, len(found.candidates)
    of = f"Of {many} candidates, ship" if many > 1 else "Ship"
    return Markup('{} <em class="name">{}</em>.').format(of, name)


def headline(facts: Facts) -> Markup:
    """One sentence that states the result of the run, with its figure emphasised."""
    best, teacher = facts.best, facts.teacher
    domains_text = f"{count(len(facts.images))} domain{'s' if len(facts.images) != 1 else ''}"
    if best is None:
        shown = teacher or facts.scored[0]
        mean = percent(shown.summary["mean"])
        subject = f"The {shown.label} alone has a {_mean(facts)} of"
        return _sentence(subject, mean, f"over {domains_text}.")
    trained = next((t for t in facts.trained_students if t.method == best.label), None)
    subject = f"{_student(trained, best.parameters)} that {_origin(facts)}"
    # A share of nothing is no number, so the student's own accuracy is stated.
    if teacher is None or not teacher.summary["mean"]:
        mean = percent(best.summary["mean"])
        return _sentence(f"{subject} has a {_mean(facts)} of", mean, f"over {domains_text}.")
    ratio = percent(best.summary["mean"] / teacher.summary["mean"])
    return _sentence(
        f"{subject} keeps", ratio, f"of its {teacher.label}'s accuracy over {domains_text}."
    )


def _mean(facts: Facts) -> str:
    """What the accuracies of the run are called."""
    return "mean class accuracy" if facts.average == "classes" else "mean accuracy"


def _sentence(before: str, figure: str, after: str) -> Markup:
    """The escaped sentence with its figure emphasised."""
    return Markup("{} <em>{}</em> {}").format(before, figure, after)


def _student(trained: TrainedStudent | None, parameters: int) -> str:
    """The subject of the headline: architecture and size of the student, if they are known."""
    if trained is None:
        return "A student"
    architecture = trained.card["architecture"]
    article = "An" if architecture[:1].lower() in "aeiou" else "A"
    millions = parameters >= MILLION
    size = f"{parameters / MILLION:.1f} M" if millions else f"{parameters:,}"
    return f"{article} {architecture} of {size} parameters"


def _origin(facts: Facts) -> str:
    """What the headline says about the images that the student was trained on."""
    if _initial_weights(facts)[:1] == ["none"]:  # of the first student, which is scored
        return "has never seen a real image"
    return "was distilled from synthesised images alone"


def _initial_weights(facts: Facts) -> list[str]:
    """`distillation.weights`, once each; empty if they are not known."""
    section = facts.origin.manifest.get("distillation") if facts.origin else None
    weights = section.get("weights") if isinstance(section, Mapping) else None
    # Earlier runs have a single name instead of a list.
    known = [weights] if isinstance(weights, str) else weights if isinstance(weights, list) else []
    return [str(each) for each in dict.fromkeys(known)]


def figures(facts: Facts) -> list[tuple[str, str, str]]:
    """Name, value and unit of the figures below the headline."""
    shown = [each for each in (facts.best, facts.teacher) if each] or facts.scored[:1]
    rows = [(f"{_mean(facts)}, {each.label}", share(each.summary["mean"]), "%") for each in shown]
    if facts.teacher and facts.teacher.labeller != ("teacher",):
        rows.append(("labelled by", ", ".join(facts.teacher.labeller), ""))
    if facts.method_images:
        made = sum(int(m.version.facts["samples"]) for m in facts.method_images)
        of = ", all methods" if len(facts.method_images) > 1 else ""
        rows.append((f"images synthesised{of}", count(made), ""))
    # Library weights are trained on ImageNet, and a file's are of unknown origin.
    weights = _initial_weights(facts)
    if weights == ["none"]:
        rows.append(("real images used", "0", ""))
    elif weights:
        rows.append(("initial weights", ", ".join(Path(each).name for each in weights), ""))
    if facts.entries:
        # Of workers, because records have durations and no dates: what ran side by side is unknown.
        spent = sum(entry.worker_seconds for entry in facts.entries)
        rows.append(("worker time, all stages", *_clock(spent)))
    return rows


def _clock(seconds: float) -> tuple[str, str]:
    """3723 as `1:02` and `h`, 62 as `1:02` and `min`."""
    large, unit = (seconds / 60, "h") if seconds >= 3600 else (seconds, "min")
    whole, rest = divmod(int(large), 60)
    return f"{whole}:{rest:02}", unit


def count(value: int) -> str:
    """12345 as `12,345`."""
    return f"{value:,}"


def percent(value: float) -> str:
    """0.897 as `89.7 %`, with a space that does not break."""
    return f"{100 * value:.1f}\u00a0%"


def size(value: int) -> str:
    """Bytes in the largest unit in which the figure is at least 1."""
    amount = float(value)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            break
        amount /= 1000
    return f"{amount:.0f}\u00a0{unit}" if unit == "B" else f"{amount:.1f}\u00a0{unit}"


def duration(seconds: float) -> str:
    """3723 as `1 h 02 min`, 62 as `1 min 02 s`, 6.2 as `6.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}\u00a0min {rest:02}\u00a0s"
    return f"{minutes // 60}\u00a0h {minutes % 60:02}\u00a0min"


def short(text: str) -> str:
    """The text, truncated to 240 characters."""
    return text if len(text) <= 240 else text[:239] + "…"


def spread(statistics: Mapping[str, Any] | None) -> str:
    """Mean and standard deviation in percent; a dash if there is none."""
    if statistics is None:
        return "-"
    text = f"{100 * statistics['mean']:.1f}"
    if statistics["std"] is None:
        return text
    return Markup("{} <small>±{}</small>").format(text, f"{100 * statistics['std']:.1f}")


def share(value: float | None) -> str:
    """0.897 as `89.7`; a dash for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def words(name: str) -> str:
    """A domain's name with spaces instead of underscores."""
    return name.replace("_", " ")


def figure(value: float | None, digits: int) -> str:
    """A number with `digits` decimals; a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def unbroken(sentence: str) -> str:
    """The sentence with spaces that do not break between a number and its unit."""
    return re.sub(r"(\d) (%|ms|MB)", "\\1\u00a0\\2", sentence)


FILTERS: dict[str, Callable[..., Any]] = {
    "amount": amount, "bytes": size, "count": count, "duration": duration, "figure": figure,
    "percent": percent, "share": share, "short": short, "spread": spread,
    "unbroken": unbroken, "words": words,
}  # fmt: skip
"""The functions that templates use, by their names there."""
