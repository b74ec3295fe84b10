"""A method at work, and what it carries from part to part."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn
from torch.optim import Optimizer

from dfkd.config.inversion import Inversion
from dfkd.errors import CorruptionError, DfkdError
from dfkd.storage.checkpoints import below, moments, restore_moments
from dfkd.synthesis.inversion.run import Classifier, PartRequest, RunContext
from dfkd.synthesis.latents import OnStep, Synthesised

NETWORK_PREFIX, OPTIMIZER_PREFIX = "network.", "optimizer."
"""What the names of tensors in a state begin with."""


class Inverter(ABC):
    """Makes the parts of a run.

    What `networks` and `optimizers` name is carried from each part to the next. A method that names
    any is chained: it makes the parts in their order. One that names none makes them in any.
    """

    name: str
    """The method's, as in the manifest."""

    def __init__(self, classifier: Classifier, context: RunContext, settings: Inversion) -> None:
        self.classifier, self.context, self.settings = classifier, course, settings
        self.networks: Mapping[str, nn.Module] = {}
        self.optimizers: Mapping[str, Optimizer] = {}

    @abstractmethod
    def images(self, request: PartRequest, on_step: OnStep | None) -> Synthesised:
        """Make a part."""

    def make(self, request: PartRequest, on_step: OnStep | None = None) -> Synthesised:
        """The images of a part, in the order of its labels.

        Raises:
            DfkdError: a chained method has diverged, and no later part could be made.
        """
        made = self.images(run, on_step)
        if self.networks and (made.diverged.any() or not self._finite()):
            raise DfkdError(
                f"inversion.{self.name}: diverged in part {request.part}, on which all later ones "
                f"depend; lower inversion.{self.name}.learning_rate"
            )
        return made

    def _finite(self) -> bool:
        weights = (each for network in self.networks.values() for each in network.parameters())
        return all(bool(each.isfinite().all()) for each in weights)

    def state(self) -> dict[str, Tensor]:
        """All that the next part depends on besides its run, on the CPU; empty if nothing is."""
        found: dict[str, Tensor] = {}
        for name, network in self.networks.items():
            found |= {
                f"{NETWORK_PREFIX}{name}.{k}": value for k, value in network.state_dict().items()
            }
        for name, optimizer in self.optimizers.items():
            found |= {
                f"{OPTIMIZER_PREFIX}{name}.{k}": value for k, value in moments(optimizer).items()
            }
        return {key: value.detach().cpu().clone() for key, value in found.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state()`; `CorruptionError` if it is of other networks."""
        try:
            for name, network in self.networks.items():
                network.load_state_dict(below(state, f"{NETWORK_PREFIX}{name}."))
            for name, optimizer in self.optimizers.items():
                restore_moments(optimizer, below(state, f"{OPTIMIZER_PREFIX}{name}."))
        except (LookupError, ValueError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise CorruptionError(
                f"a state is not of this {self.name} ({reason}); delete the folder state/ of the "
                "version and run again"
            ) from None
