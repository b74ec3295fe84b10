"""What images and parts of each method depend on."""

from typing import get_args

import pytest

from dfkd.config.methods import (
    Method,
    PromptMethod,
    has_dependent_images,
    has_dependent_parts,
    prompt_method,
    synthesis_method,
)


@pytest.mark.parametrize("method", get_args(PromptMethod))
def test_images_from_prompts_are_independent_without_l_bn(method: PromptMethod) -> None:
    assert not has_dependent_images(method)
    assert has_dependent_images(f"{method}-bn")
    for each in (method, f"{method}-bn"):
        assert (prompt_method(each), synthesis_method(each)) == (method, "latent")
        assert not has_dependent_parts(each)


@pytest.mark.parametrize(
    ("method", "parts"), [("deepinversion", False), ("dfad", True), ("cmi", True), ("pre", True)]
)
def test_images_of_an_inversion_depend_on_each_other(method: Method, parts: bool) -> None:
    """All but DeepInversion train a network from part to part."""
    assert has_dependent_images(method)
    assert has_dependent_parts(method) == parts
    assert (prompt_method(method), synthesis_method(method)) == (None, method)
