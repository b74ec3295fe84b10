"""The base class of the methods, with the state that a method carries from part to part."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn
from torch.optim import Optimizer

from dfkd.config.inversion import Inversion
from dfkd.errors import CorruptionError, DfkdError, one_line
from dfkd.storage.checkpoints import below, moments, restore_moments
from dfkd.synthesis.inversion.run import Classifier, PartRequest, RunContext
from dfkd.synthesis.latents import OnStep, Synthesised

NETWORK_PREFIX, OPTIMIZER_PREFIX = "network.", "optimizer."
"""Prefixes of the names of tensors in a state."""


class Inverter(ABC):
    """Makes the parts of a run.

    A subclass puts into `networks` and `optimizers` what it carries from each part to the next. A
    method that carries something is chained: it makes the parts in order. Other methods make them
    in any order.
    """

    name: str
    """The name of the method in the manifest."""

    def __init__(self, classifier: Classifier, context: RunContext, settings: Inversion) -> None:
        self.classifier, self.context, self.settings = classifier, context, settings
        self.networks: Mapping[str, nn.Module] = {}
        self.optimizers: Mapping[str, Optimizer] = {}

    @abstractmethod
    def images(self, request: PartRequest, on_step: OnStep | None) -> Synthesised:
        """Make the images of a part; implemented by each method."""

    def make(self, request: PartRequest, on_step: OnStep | None = None) -> Synthesised:
        """Make the images of a part, in the order of its labels.

        Raises:
            DfkdError: a chained method has diverged, so that no later part can be made.
        """
        result = self.images(request, on_step)
        # Images of an unchained method may diverge: they are made again with other seeds. In a
        # chain the next part would start from broken weights, so it ends here.
        if self.networks and (result.diverged.any() or not self._finite()):
            raise DfkdError(
                f"inversion.{self.name}: diverged in part {request.part}, on which all later ones "
                f"depend; lower inversion.{self.name}.learning_rate"
            )
        return result

    def _finite(self) -> bool:
        """Whether all weights of the carried networks are finite."""
        weights = (each for network in self.networks.values() for each in network.parameters())
        return all(bool(each.isfinite().all()) for each in weights)

    def state(self) -> dict[str, Tensor]:
        """The tensors that the next part depends on, copied to the CPU; empty if not chained."""
        tensors: dict[str, Tensor] = {}
        for name, network in self.networks.items():
            tensors |= {
                f"{NETWORK_PREFIX}{name}.{k}": value for k, value in network.state_dict().items()
            }
        for name, optimizer in self.optimizers.items():
            tensors |= {
                f"{OPTIMIZER_PREFIX}{name}.{k}": value for k, value in moments(optimizer).items()
            }
        return {key: value.detach().cpu().clone() for key, value in tensors.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a `state()`; `CorruptionError` if it belongs to other networks."""
        try:
            for name, network in self.networks.items():
                network.load_state_dict(below(state, f"{NETWORK_PREFIX}{name}."))
            for name, optimizer in self.optimizers.items():
                restore_moments(optimizer, below(state, f"{OPTIMIZER_PREFIX}{name}."))
        except (LookupError, ValueError, RuntimeError) as error:
            raise CorruptionError(
                f"a state is not of this {self.name} ({one_line(error)}); delete the folder state/ "
                "of the version and run again"
            ) from None
