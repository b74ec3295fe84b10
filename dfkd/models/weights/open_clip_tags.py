"""open_clip's tags: the published file, or the model of a hub, that stands behind one.

open_clip's table has a hub's id for every tag, and for the older ones, OpenAI's among them, the
address of a file too. That file is what is used then: it has the published format and a hash.
"""

from pathlib import Path

from open_clip.pretrained import download_pretrained, get_pretrained_cfg

from dfkd.errors import WeightsError
from dfkd.models.weights.artifacts import FETCH, Artifact, at_address, cached

HUB = "hub"
"""The folder of a cache in which the hub's client keeps its own."""


def published(model: str, tag: str) -> Artifact | None:
    """The file behind a tag of an architecture; None where only a hub has it."""
    config = get_pretrained_cfg(model, tag)
    if not config.get("url"):
        return None
    openai = "openaipublic" in config["url"]
    licence = "MIT (openai/CLIP)" if openai else f"that of its authors, see {hub_id(model, tag)}"
    return at_address(config["url"], licence)


def hub_id(model: str, tag: str) -> str:
    """The name of the tag's model on its hub."""
    return str(get_pretrained_cfg(model, tag).get("hf_hub", "")).strip("/")


def find(model: str, tag: str, cache: str) -> Path:
    """The weight file behind a tag; what only a hub has is downloaded if the cache has it not.

    Raises:
        WeightsError: it is not in the cache, and no hub gives it.
    """
    if artifact := published(model, tag):
        return cached("teacher.weights", tag, artifact, cache)
    config, folder = get_pretrained_cfg(model, tag), Path(cache).expanduser() / HUB
    try:
        return Path(download_pretrained(config, cache_dir=str(folder)))
    except Exception as error:  # what the hub's client raises has no common base
        raise WeightsError(
            "teacher.weights",
            f"tag of {model} is not in the cache {cache}, and its hub does not give "
            f"{hub_id(model, tag)} ({' '.join(str(error).split())[:160]})",
            tag,
            f"run {FETCH} where there is a network",
        ) from None
