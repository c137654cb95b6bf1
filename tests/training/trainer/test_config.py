import math
from dataclasses import asdict, replace

import pytest

from retinaserve.training.errors import UserError
from retinaserve.training.settings import settings_of
from retinaserve.training.trainer.config import TrainConfig

QUICK = TrainConfig(6)


@pytest.mark.parametrize(
    ("config", "rates"),
    [
        (TrainConfig(4, lr=1.0, warmup=0), {0: 1.0, 2: 0.5, 4: 0.0}),
        (TrainConfig(100, lr=1.0, warmup=4, milestones=(50,)), {0: 0.25, 3: 1.0, 49: 1.0, 50: 0.1, 99: 0.1}),
        (TrainConfig(10, lr=2.0, warmup=0, milestones=(2, 4), gamma=0.5), {0: 2.0, 2: 1.0, 3: 1.0, 4: 0.5}),
    ],
    ids=["cosine", "a step after warm-up", "two steps"],
)
def test_rates_by_hand(config: TrainConfig, rates: dict[int, float]) -> None:
    assert {iteration: config.lr_at(iteration) for iteration in rates} == pytest.approx(rates, abs=1e-9)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("iterations", 0),
        ("batch", 0),
        ("lr", 0.0),
        ("lr", math.nan),
        ("box_weight", -1.0),
        ("augment", "much"),
        ("precision", "fp8"),
        ("freeze", 6),
        ("ema", 1.0),
        ("jitter", (0, 9)),
        ("jitter", (9, 8)),
        ("milestones", (5, 0)),
    ],
)
def test_nonsense_is_refused(field: str, value: object) -> None:
    with pytest.raises(UserError, match=field):
        replace(QUICK, **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "lr", "weight_decay"),
    [
        ({}, 0.002, 0.01),
        ({"batch": 4}, 0.0005, 0.01),
        ({"optimizer": "muon", "batch": 8}, 0.006, 0.01),
        ({"optimizer": "sgd"}, 0.01, 1e-4),
        ({"optimizer": "sgd", "lr": 0.5, "weight_decay": 0.0}, 0.5, 0.0),
    ],
    ids=["adamw", "in proportion to the batch", "muon", "sgd", "given"],
)
def test_rate_and_decay_follow_the_optimizer(given: dict[str, object], lr: float, weight_decay: float) -> None:
    config = TrainConfig(1, **given)  # type: ignore[arg-type]
    assert (config.lr, config.weight_decay) == (lr, weight_decay)


def test_flags_make_a_record_and_the_schedule_scales_it() -> None:
    flags = {"iters": 90, "milestones": (70, 50), "schedule": 0.1, "resize": 640, "val_iters": 5, "backbone": "x"}
    config = TrainConfig.from_flags(flags)
    assert (config.iterations, config.milestones, config.shorter, config.val_every) == (9, (5, 7), 640, 5)
    assert TrainConfig.from_flags({}) == TrainConfig()


def test_every_setting_is_known_by_its_flag_and_has_help() -> None:
    flags = {name for _, known in settings_of(TrainConfig) if known.help for name in known.flags}
    assert {"--iters", "--batch-norm", "--resize", "--max-size", "--val-iters", "--regularization-l2"} <= flags
    assert len(flags) == len(asdict(QUICK)) - 1 + 1  # report_every has none, weight_decay has two
