"""yhenon's pytorch-retinanet and its forks: state dicts, and the whole modules that its train.py saves.

    detector = import_yhenon(found, Choices())

Its decode multiplies deltas by 0.1, 0.1, 0.2, 0.2; that is folded into the box output.
"""

from dataclasses import replace

from retinaserve.training.importers.parts import (
    RATIOS,
    SIZES,
    UNLIMITED,
    Choices,
    Found,
    Imported,
    anchors_of,
    assemble,
    clip_of,
    renamed,
    scale_boxes,
    shape_of,
    spec_of,
)

NEEDS = ("classificationModel.output.weight", "regressionModel.output.weight")
DEVIATION = (0.1, 0.1, 0.2, 0.2)
HEADS = {"classificationModel": "cls_head", "regressionModel": "box_head"}
PADDING = 32.0  # pixels behind the image, at most
DETECTIONS = 300  # it has no maximum


def import_yhenon(found: Found, choices: Choices) -> Imported:
    """Return the detector, its classes in the order of their ids, as its CocoDataset has them."""
    weights = renamed(_our_name, found.state)
    network = replace(shape_of(weights), p6_from="c5")
    scale_boxes(weights, DEVIATION)
    source = "assumed, its own; the file does not say: --anchor-sizes, --anchor-ratios"
    table, anchors = anchors_of(choices, SIZES, RATIOS, source, order="ratio", centre=0.5)
    clip, ends = clip_of(choices, "yhenon")
    spec, line = spec_of(
        choices,
        weights,
        table,
        network,
        sort=True,
        max_detections=DETECTIONS,
        delta_clamp=UNLIMITED,
        clip=clip,
        clip_margin=-PADDING if clip == "image" else 0.0,
    )
    notes = [
        f"yhenon's RetinaNet with {network.backbone}; it answers all boxes above the threshold, this at most "
        f"{choices.max_detections or DETECTIONS} (--max), from the best of each level (--candidates)",
        line,
        anchors,
        ends,
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
