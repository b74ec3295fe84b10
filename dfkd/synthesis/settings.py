"""The settings of the built-in image source."""

from pydantic.dataclasses import dataclass

from dfkd.config.plugins import SourceSettings
from dfkd.utils.types import CHECKED


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Latents(SourceSettings):
    """Decodes latents of the generator, each of which is optimised for its prompt, or sampled from
    it (equations 1-3)."""

    made_by = "dfkd.synthesis.latents:LatentSource"
