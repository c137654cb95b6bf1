"""A small detector with random weights that finds plenty in a checkerboard and nothing in a flat picture."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from retinaserve.build_tools.engine.manifest import Manifest
from retinaserve.build_tools.export import heads_graph
from retinaserve.build_tools.graph.graft import save
from retinaserve.training.model import build_model
from retinaserve.training.model.retinanet import RetinaNet
from retinaserve.training.spec import DetectorSpec

CLASSES, CATEGORY_IDS = ("disc", "box", "étoile filante"), (1, 5, 9)


SMALL: dict[str, Any] = {"backbone": "resnet18", "width": 8, "fpn_channels": 16, "head_depth": 1, "norm": "none"}


def toy_spec() -> DetectorSpec:
    """Return a spec whose height, width, classes and category ids are all different numbers."""
    return small_spec(CLASSES, size=(128, 192), category_ids=CATEGORY_IDS)


def small_spec(classes: Sequence[str], **others: Any) -> DetectorSpec:
    """Return the spec of a network that computes in milliseconds."""
    return DetectorSpec.create(classes, **{**SMALL, **others})


def export_heads(model: nn.Module, spec: DetectorSpec, path: Path) -> None:
    """Write the raw heads of a network."""
    save(heads_graph(model, spec), path)


PLAN = b"ftrt, and what TensorRT alone can read"


def toy_manifest() -> Manifest:
    """Return the manifest of a plan of the toy detector: PLAN, which is no real one."""
    return Manifest(
        spec=toy_spec(),
        precision="int8",
        batch=(1, 8, 24),
        tensorrt="10.13.3.9",
        cuda="13.0",
        compute_capability="8.9",
        gpu="NVIDIA L4",
        plan_sha256=hashlib.sha256(PLAN).hexdigest(),
        onnx_sha256="a" * 64,
        plugins_sha256="b" * 64,
    )


def toy_model(spec: DetectorSpec) -> RetinaNet:
    """Return the network with weights chosen so that scores spread around the threshold."""
    torch.manual_seed(0)
    model = build_model(spec).eval()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.kaiming_normal_(layer.weight)
    with torch.no_grad():
        model.cls_head.output.weight.mul_(0.08)
        model.cls_head.output.bias.sub_(1)
        model.box_head.output.weight.mul_(0.3)
    return model
