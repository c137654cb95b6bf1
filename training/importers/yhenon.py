"""yhenon's pytorch-retinanet and its forks: state dicts, and the whole modules that its train.py saves.

    detector = import_yhenon(found, Choices())

Its decode multiplies deltas by 0.1, 0.1, 0.2, 0.2; that is folded into the box output.
"""

from dataclasses import replace

from retinaserve.training.importers.parts import (
    UNLIMITED,
    Choices,
    Found,
    Imported,
    assemble,
    by_id,
    named,
    renamed,
    scale_boxes,
    shape_of,
)
from retinaserve.training.importers.tables import RATIOS, SIZES, described, plain_anchors
from retinaserve.training.spec import DetectorSpec, anchor_rows

NEEDS = ("classificationModel.output.weight", "regressionModel.output.weight")
DEVIATION = (0.1, 0.1, 0.2, 0.2)
HEADS = {"classificationModel": "cls_head", "regressionModel": "box_head"}
DETECTIONS = 300  # it has no maximum


def import_yhenon(found: Found, choices: Choices) -> Imported:
    """Return the detector, its classes in the order of their ids, as its CocoDataset has them."""
    weights = renamed(_our_name, found.state)
    network = replace(shape_of(weights), p6_from="c5")
    scale_boxes(weights, DEVIATION)
    sizes, ratios = choices.anchor_sizes or SIZES, choices.anchor_ratios or RATIOS
    table = plain_anchors(sizes, ratios, order="ratio", centre=0.5)
    count = weights["cls_head.output.weight"].shape[0] // table.shape[1]
    categories, line = named(replace(choices, categories=by_id(choices.categories)), count)
    spec = DetectorSpec(
        tuple(categories.values()),
        tuple(categories),
        choices.size,
        anchor_rows(table),
        network,
        max_detections=DETECTIONS,
        delta_clamp=UNLIMITED,
    )
    said = choices.anchor_sizes or choices.anchor_ratios
    source = "as you said" if said else "assumed, its own; the file does not say: --anchor-sizes, --anchor-ratios"
    notes = [
        f"yhenon's RetinaNet with {network.backbone}; it answers all boxes above the threshold, this at most "
        f"{choices.max_detections or DETECTIONS}",
        line,
        described(sizes, ratios, source),
    ]
    return assemble(spec, weights, choices, notes)


def _our_name(name: str) -> str:
    first, _, rest = name.partition(".")
    if first in HEADS:
        layer, part = rest.split(".")
        return (
            f"{HEADS[first]}.output.{part}"
            if layer == "output"
            else f"{HEADS[first]}.convs.{int(layer[4:]) - 1}.{part}"
        )
    if first == "fpn":
        layer, part = rest.split(".")
        if layer == "P6":
            return f"fpn.p6.{part}"
        if layer == "P7_2":
            return f"fpn.p7.{part}"
        kind = {"1": "laterals", "2": "smooth"}[layer[-1]]
        return f"fpn.{kind}.{int(layer[1]) - 3}.{part}"
    return f"backbone.{name}"
