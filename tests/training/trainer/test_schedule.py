import pytest

from retinaserve.training.trainer.schedule import Schedule, scaled_rate


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (Schedule(1.0, 4), {0: 1.0, 2: 0.5, 4: 0.0}),
        (Schedule(1.0, 100, warmup=4, milestones=(50,)), {0: 0.25, 3: 1.0, 49: 1.0, 50: 0.1, 99: 0.1}),
        (Schedule(2.0, 10, milestones=(2, 4), gamma=0.5), {0: 2.0, 2: 1.0, 3: 1.0, 4: 0.5}),
    ],
    ids=["cosine", "a step after warm-up", "two steps"],
)
def test_rates_by_hand(schedule: Schedule, rates: dict[int, float]) -> None:
    assert {iteration: schedule.at(iteration) for iteration in rates} == pytest.approx(rates, abs=1e-9)


def test_default_rates_grow_with_the_batch() -> None:
    assert scaled_rate("sgd", 16) == 0.01 and scaled_rate("adamw", 4) == 0.0005
