"""Limits: each is looser for a coarser precision, and each can be named."""

from pathlib import Path

import pytest

from retinaserve.eval.verify.matching import (
    AT_LEAST,
    PRECISIONS,
    TABLE,
    limits_for,
    loosest,
    parse_overrides,
    precision_named,
)
from retinaserve.training.errors import Exit, UserError


@pytest.mark.parametrize("name", TABLE)
def test_coarser_is_looser(name: str) -> None:
    values = [limits_for(precision)[name] for precision in PRECISIONS]
    assert values == sorted(values, reverse=name in AT_LEAST)
    assert values[0] != values[-1]


def test_the_loosest_of_both_sides_counts() -> None:
    assert loosest("fp32", "int8") == loosest("int8", "fp16") == "int8"
    assert loosest("", "fp16") == "fp16" and loosest("", "") == "fp32"


@pytest.mark.parametrize(
    ("name", "known"), [("f32", "fp32"), ("BF16", "bf16"), ("int8", "int8"), ("f8", ""), ("", "")]
)
def test_names_of_precisions(name: str, known: str) -> None:
    assert precision_named(name) == known


def test_the_page_states_these_limits() -> None:
    page = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text()
    for name, (what, values) in TABLE.items():
        assert f"| `{name}`: {what} | {' | '.join(f'{value:g}' for value in values)} |\n" in page


def test_overrides() -> None:
    assert parse_overrides(()) == {}
    overrides = parse_overrides(("score-max=0.5", "ap-loss=1e-3"))
    assert overrides == {"score-max": 0.5, "ap-loss": 0.001}
    assert limits_for("fp32", overrides) == limits_for("fp32") | overrides
    for word, message in {
        "score=1": "no limit has this name",
        "moved=": "is no number",
        "moved": "no number",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            parse_overrides((word,))
        assert caught.value.code == Exit.USAGE
