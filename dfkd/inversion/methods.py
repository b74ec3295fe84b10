"""The conventional methods by the names that a manifest gives them."""

from dfkd.inversion.cmi import CmiInverter
from dfkd.inversion.deepinversion import DeepInverter
from dfkd.inversion.dfad import DfadInverter
from dfkd.inversion.inverter import Inverter
from dfkd.inversion.pre import PreInverter

METHODS: dict[str, type[Inverter]] = {
    method.name: method for method in (DeepInverter, DfadInverter, CmiInverter, PreInverter)
}
