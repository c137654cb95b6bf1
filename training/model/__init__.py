"""The networks: `build_model(spec)` is the one place that knows which class a spec is built by."""

from retinaserve.training.model.retinanet import RetinaNet
from retinaserve.training.spec import DetectorSpec


def build_model(spec: DetectorSpec) -> RetinaNet:
    """Return a spec's network with fresh weights, in train mode."""
    return RetinaNet(spec)
