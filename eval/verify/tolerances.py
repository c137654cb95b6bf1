"""How far a candidate may be from its reference, by the precision it computes in.

    limits = limits_for("int8", {"ap-loss": 0.01})
    limits["score-max"]

Tight enough that a changed weight shows, loose enough that another runtime's arithmetic passes: at least twice
what bccd-cpu showed on 87 images.
"""

from collections.abc import Mapping

from retinaserve.training.errors import Exit, UserError

PRECISIONS = ("fp32", "fp16", "bf16", "int8")  # from the tightest
ALIASES: Mapping[str, str] = {"f32": "fp32", "f16": "fp16"}  # as OpenVINO writes them

# name: what it limits, then the default for each of PRECISIONS
TABLE: Mapping[str, tuple[str, tuple[float, float, float, float]]] = {
    "head-max": ("largest difference of a logit or delta", (0.002, 0.1, 0.5, 4.0)),
    "head-mean": ("mean difference of the logits or deltas of a level", (0.0001, 0.005, 0.03, 0.15)),
    "head-cosine": ("cosine of a level's logits or deltas, at least", (0.99999, 0.9999, 0.9995, 0.99)),
    "unmatched": ("share of boxes without a counterpart", (0.001, 0.005, 0.02, 0.03)),
    "moved": ("share of matched boxes whose IoU is below 0.9", (0.001, 0.03, 0.08, 0.15)),
    "score-max": ("largest score difference of the matched others", (0.001, 0.01, 0.2, 0.3)),
    "score-mean": ("mean score difference of the matched others", (0.0001, 0.001, 0.006, 0.015)),
    "iou-mean": ("mean IoU of the matched others, at least", (0.9999, 0.995, 0.98, 0.96)),
    "ap-loss": ("AP lost, of 1", (0.0005, 0.001, 0.005, 0.005)),
    "margin": ("score distance from a cut within which a lone box is borderline", (0.0002, 0.01, 0.03, 0.05)),
}
AT_LEAST = frozenset({"head-cosine", "iou-mean"})


def precision_named(name: str) -> str:
    """Return the precision of PRECISIONS that a name means, or an empty string."""
    known = ALIASES.get(name.lower(), name.lower())
    return known if known in PRECISIONS else ""


def loosest(*precisions: str) -> str:
    """Return the least exact of some precisions; one that is unknown counts as fp32, the tightest."""
    return max((name or PRECISIONS[0] for name in precisions), key=PRECISIONS.index)


def limits_for(precision: str, overrides: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return each limit by its name."""
    column = PRECISIONS.index(precision)
    return {name: values[column] for name, (_, values) in TABLE.items()} | dict(overrides or {})


def parse_overrides(words: tuple[str, ...]) -> dict[str, float]:
    """Read words of the form NAME=VALUE. Raises UserError for an unknown name or no number."""
    overrides = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in TABLE:
            raise UserError(
                f"--limit {word}: no limit has this name", f"one of: {', '.join(TABLE)}", code=Exit.USAGE
            )
        try:
            overrides[name] = float(value)
        except ValueError:
            raise UserError(
                f"--limit {word}: {value!r} is no number", f"as in {name}=0.01", code=Exit.USAGE
            ) from None
    return overrides
