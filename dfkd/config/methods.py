"""The methods by which images are made, and what they are called in storage and results."""

from collections.abc import Sequence
from typing import Literal, cast, get_args

PromptMethod = Literal["vanilla", "mix", "random", "contrastive"]
"""Latents of the VQGAN are optimised towards prompts that are made so."""

InversionMethod = Literal["deepinversion", "dfad", "cmi", "pre"]
"""The teacher is inverted without the VQGAN (`dfkd.inversion`)."""

Way = Literal["latent", InversionMethod]
"""How pixels come about; the way `latent` serves all prompt methods."""

Method = Literal[
    PromptMethod, "vanilla-bn", "mix-bn", "random-bn", "contrastive-bn", InversionMethod
]
"""A row of results. With `-bn`, L_bn is added to what latents are optimised for."""

BATCH_NORM_SUFFIX = "-bn"


def expand_methods(
    ways: Sequence[Way], prompts: Sequence[PromptMethod], weights: Sequence[float]
) -> tuple[Method, ...]:
    """The methods of a run: for the way `latent` one for each weight of L_bn and prompt method."""
    found: list[str] = []
    for way in ways:
        if way == "latent":
            found += [p + BATCH_NORM_SUFFIX if weight else p for weight in weights for p in prompts]
        else:
            found.append(way)
    return cast(tuple[Method, ...], tuple(found))


def prompt_method(method: Method) -> PromptMethod | None:
    """Whose prompts the latents of a method are optimised towards; None if it has no latents."""
    name = method.removesuffix(BATCH_NORM_SUFFIX)
    return cast(PromptMethod, name) if name in get_args(PromptMethod) else None


def way_of(method: Method) -> Way:
    """The way by which a method makes pixels."""
    return "latent" if prompt_method(method) else cast(InversionMethod, method)


def has_dependent_images(method: Method) -> bool:
    """Whether the images of a method depend on each other."""
    return method not in get_args(PromptMethod)


def has_dependent_parts(method: Method) -> bool:
    """Whether each part of a method's images depends on all parts before it."""
    return method in ("dfad", "cmi", "pre")
