"""What `train` says before it works: whether the machine is free for it."""

import pytest

from retinaserve.scripts.cli.train_console import crowded


@pytest.mark.parametrize(
    ("load", "cores", "threads", "expected"),
    [
        (0.0, 2, 2, False),
        (1.0, 2, 2, False),  # the step before this one
        (7.3, 2, 2, True),
        (7.3, 2, 1, False),  # nothing to wait for
        (20.0, 64, 32, False),
        (70.0, 64, 64, True),
    ],
)
def test_a_crowded_machine(load: float, cores: int, threads: int, expected: bool) -> None:
    assert crowded(load, cores, threads) is expected
