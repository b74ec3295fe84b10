"""The conventional methods by the names that a manifest gives them."""

from dfkd.inversion import cmi, deepinversion, dfad, pre
from dfkd.inversion.run import Invert

METHODS: dict[str, Invert] = {
    "deepinversion": deepinversion.invert,
    "dfad": dfad.invert,
    "cmi": cmi.invert,
    "pre": pre.invert,
}
