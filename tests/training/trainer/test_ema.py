import pytest
import torch
from torch import nn

from retinaserve.training.trainer.optimizer import Ema


def test_an_average_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
        average = Ema(model, decay=0.25)
        model.weight.fill_(1.0)
        average.update(model)
        assert average.state["weight"].item() == pytest.approx(1 - 2 / 11)  # (1 + 1) / (10 + 1) at first
        for _ in range(3):
            average.update(model)
        # Then 3/12, and 0.25 for good.
        assert average.state["weight"].item() == pytest.approx(1 - 2 / 11 * 0.25**3)


def test_statistics_are_averaged_and_counters_copied() -> None:
    model = nn.BatchNorm2d(2)
    average = Ema(model, decay=0.9)
    model(torch.randn(4, 2, 3, 3) + 10)
    average.update(model)
    assert average.state["num_batches_tracked"].item() == 1
    moved = model.running_mean * (1 - 2 / 11)
    assert torch.allclose(average.state["running_mean"], moved)


def test_it_goes_on_where_it_was() -> None:
    torch.manual_seed(0)
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    first = Ema(model, 0.9)
    first.update(other)
    second = Ema(other, 0.9)
    second.restore({name: value.clone() for name, value in first.state.items()}, first.updates)
    first.update(model)
    second.update(model)
    assert all(torch.equal(value, second.state[name]) for name, value in first.state.items())
