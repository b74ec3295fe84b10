"""The conventional methods by their names in the manifest."""

from dfkd.synthesis.inversion.cmi import CmiInverter
from dfkd.synthesis.inversion.deepinversion import DeepInverter
from dfkd.synthesis.inversion.dfad import DfadInverter
from dfkd.synthesis.inversion.inverter import Inverter
from dfkd.synthesis.inversion.pre import PreInverter

METHODS: dict[str, type[Inverter]] = {
    method.name: method for method in (DeepInverter, DfadInverter, CmiInverter, PreInverter)
}
