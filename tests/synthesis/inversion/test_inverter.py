"""What a chained method carries: a part made from it is the part of the run that went on."""

import pytest
import torch

from dfkd.config.inversion import Inversion
from dfkd.config.methods import has_dependent_parts
from dfkd.errors import CorruptionError, DfkdError
from dfkd.models.teacher import Teacher
from dfkd.synthesis.inversion import cmi
from dfkd.synthesis.inversion.inverter import Inverter
from dfkd.synthesis.request import PartRequest
from dfkd.synthesis.shard_maker import METHODS
from tests.helpers.inversion_runs import course, problem, read

CHAINED = ("dfad", "cmi", "pre")


def begun(method: str, teacher: Teacher, settings: Inversion, *parts: torch.Tensor) -> Inverter:
    classifier, _ = problem(teacher, 0)
    return METHODS[method](classifier, course(6, *parts), settings)


def run(part: int) -> PartRequest:
    seeds = range(2 * part, 2 * part + 2)
    return PartRequest(torch.tensor([0, 1]), seeds, 64, part=part, before=2 * part)


def test_only_chained_methods_have_a_state(teacher: Teacher) -> None:
    settings = read().inversion
    for method in METHODS:
        carries = bool(begun(method, teacher, settings).state())
        assert carries == has_dependent_parts(method) == (method in CHAINED)


@pytest.mark.parametrize("method", CHAINED)
def test_a_part_from_a_state_is_the_one_of_the_run_that_went_on(
    method: str, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cmi, "NEGATIVES", 3)  # fewer than the bank holds, so that draws count
    settings = read("inversion.pre.rounds=3").inversion
    whole = begun(method, teacher, settings)
    first = whole.make(run(0)).pixels
    states = [whole.state()]
    whole.context = course(6, first)
    second = whole.make(run(1)).pixels
    states.append(whole.state())
    assert any(not torch.equal(states[1][key], states[0][key]) for key in states[0])

    resumed = begun(method, teacher, settings, first, second)
    resumed.restore(states[0])
    assert torch.equal(resumed.make(run(1)).pixels, second)
    after = resumed.state()
    assert after.keys() == states[1].keys()
    assert all(torch.equal(after[key], states[1][key]) for key in after)
    # The chain matters: from the start the same part is another.
    alone = begun(method, teacher, settings, first)
    assert not torch.equal(alone.make(run(1)).pixels, second)


def test_a_state_of_another_network_is_refused(teacher: Teacher) -> None:
    small = begun("dfad", teacher, read().inversion).state()
    other = begun("dfad", teacher, read("inversion.dfad.width=8").inversion)
    with pytest.raises(CorruptionError, match=r"not of this dfad .*delete the folder state/"):
        other.restore(small)


@pytest.mark.parametrize("method", CHAINED)
def test_a_part_that_diverges_ends_the_chain(method: str, teacher: Teacher) -> None:
    settings = read(f"inversion.{method}.learning_rate=1e35").inversion
    inverter = begun(method, teacher, settings)
    with pytest.raises(DfkdError, match=rf"inversion\.{method}: diverged in part 0, on which all"):
        inverter.make(PartRequest(torch.tensor([0, 1, 0, 1]), range(4), 64))
