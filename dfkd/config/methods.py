"""The methods of synthesis and their names in storage and results.

A method is a row of results: images of one source, from the prompts of one method if the source
follows prompts.

    contrastive        the prompt method, with the source `latents`
    contrastive-bn     the prompt method, with another source that follows prompts
    dfad               a source that knows nothing but the classes
"""

from collections.abc import Mapping
from typing import Any

Method = str

LATENTS = "latents"
"""The source that needs no name of its own in that of a method."""


def method_name(prompts: str | None, source: str) -> Method:
    """The name of a method; `prompts` is None for a source that follows none."""
    if prompts is None:
        return source
    return prompts if source == LATENTS else f"{prompts}-{source}"


def method_of(identity: Mapping[str, Any]) -> Method:
    """The name of the method that an identity belongs to."""
    prompts = identity.get("prompts.method")
    return method_name(prompts and ", ".join(prompts), identity.get("synthesis.source", LATENTS))
