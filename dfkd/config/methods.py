"""The methods of synthesis and their names in storage and results."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

PromptMethod = Literal["vanilla", "mix", "random", "contrastive"]
"""Prompt methods, for methods that make a generator's latents from prompts."""

InversionMethod = Literal["deepinversion", "dfad", "cmi", "pre"]
"""Methods that invert the teacher without the frozen generator (`dfkd.synthesis.inversion`)."""

SynthesisMethod = Literal["latent", InversionMethod]
"""Values of `synthesis.method`; `latent` serves all prompt methods."""

Method = Literal[
    PromptMethod, "vanilla-bn", "mix-bn", "random-bn", "contrastive-bn", InversionMethod
]
"""A row of results. Methods with `-bn` add L_bn to the loss of the latents."""

BATCH_NORM_SUFFIX = "-bn"
"""Ends the name of a method with L_bn."""


def expand_methods(
    ways: Sequence[SynthesisMethod], prompts: Sequence[PromptMethod], weights: Sequence[float]
) -> tuple[Method, ...]:
    """The methods of a run; `latent` gives one for each weight of L_bn and each prompt method."""
    methods: list[str] = []
    for way in ways:
        if way == "latent":
            for weight in weights:
                methods += [prompt + BATCH_NORM_SUFFIX if weight else prompt for prompt in prompts]
        else:
            methods.append(way)
    return cast(tuple[Method, ...], tuple(methods))


def method_of(identity: Mapping[str, Any]) -> str:
    """The name of the method that an identity belongs to."""
    way = identity.get("synthesis.method", ["latent"])
    weights = identity.get("synthesis.batch_norm_weight", [0.0])
    return ", ".join(expand_methods(way, identity.get("prompts.method", ["unknown"]), weights))


def prompt_method(method: Method) -> PromptMethod | None:
    """The prompt method of a method with latents; None for an inversion method."""
    name = method.removesuffix(BATCH_NORM_SUFFIX)
    return cast(PromptMethod, name) if name in get_args(PromptMethod) else None


def synthesis_method(method: Method) -> SynthesisMethod:
    """The value of `synthesis.method` that a method belongs to."""
    return "latent" if prompt_method(method) else cast(InversionMethod, method)


def has_dependent_images(method: Method) -> bool:
    """Whether the images of a method depend on each other."""
    return method not in get_args(PromptMethod)


def has_dependent_parts(method: Method) -> bool:
    """Whether each part of a method's images depends on all parts before it."""
    return method in ("dfad", "cmi", "pre")
