"""open_clip's tags: the published file or the hub's model that a tag names.

open_clip's table has a hub's id for every tag. Older tags, such as OpenAI's, also have the address
of a file. That file is preferred, because it has the published format and a hash.
"""

from pathlib import Path

from open_clip.pretrained import download_pretrained, get_pretrained_cfg

from dfkd.errors import WeightsError, one_line
from dfkd.models.weights.artifacts import FETCH, Artifact, at_address, cached

HUB = "hub"
"""Folder of the cache for the hub's client."""


def published(model: str, tag: str) -> Artifact | None:
    """The file that a tag of an architecture names; None if only a hub has it."""
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
    """The path of the weight file of a tag.

    A file that only a hub has is downloaded if it is not in the cache.

    Raises:
        WeightsError: the file is not in the cache, and no hub serves it.
    """
    if artifact := published(model, tag):
        return cached("teacher.weights", tag, artifact, cache)
    config, folder = get_pretrained_cfg(model, tag), Path(cache).expanduser() / HUB
    try:
        return Path(download_pretrained(config, cache_dir=str(folder)))
    except Exception as error:  # the errors of the hub's client have no common base
        raise WeightsError(
            "teacher.weights",
            f"tag of {model} is not in the cache {cache}, and its hub does not give "
            f"{hub_id(model, tag)} ({one_line(error)})",
            tag,
            f"run {FETCH} where there is a network",
        ) from None
