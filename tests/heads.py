"""Random raw heads, and what the reference makes of them: shared by the tests of the torch path and the graft."""

from dataclasses import dataclass

import numpy as np

from retinaserve.plugins import reference
from retinaserve.training.spec import DetectorSpec

SPECS = {
    "1 class 64x64": DetectorSpec.create(["card"], size=(64, 64)),
    "3 classes 96x160, no multiple of 128": DetectorSpec.create(["a", "b", "c"], size=(96, 160)),
    "80 classes 256x256": DetectorSpec.create([f"c{i}" for i in range(80)], size=(256, 256)),
    "few candidates, other thresholds": DetectorSpec.create(
        ["a", "b"], size=(200, 72), topk_candidates=7, score_threshold=0.4, nms_iou=0.3, max_detections=9
    ),
    "fewer slots than detections": DetectorSpec.create(
        ["a", "b"], size=(100, 60), strides=(32, 64), topk_candidates=20, max_detections=50
    ),
    "boxes end at the canvas": DetectorSpec.create(["a"], size=(64, 96), clip="canvas"),
}
KINDS = ("none", "one", "few", "ties", "many", "crowd", "absurd")


@dataclass(frozen=True)
class Heads:
    """Heads of a batch: (B, A*C, h, w) and (B, A*4, h, w) a level, and the letterbox vectors (B, 4)."""

    logits: list
    deltas: list
    letterbox: np.ndarray

    def take(self, images):
        return Heads(
            [level[images] for level in self.logits],
            [level[images] for level in self.deltas],
            self.letterbox[images],
        )


def random_heads(spec, kinds=KINDS, seed=0):
    """Return heads with one picture a kind: from no detection over equal logits to far more than K."""
    rng = np.random.default_rng(seed)
    pictures = [_picture(spec, kind, rng) for kind in kinds]
    logits, deltas = zip(*pictures, strict=True)
    height, width = spec.size
    letterbox = []
    for _ in kinds:
        original = rng.integers(30, 900, 2)
        scale = min(height / original[0], width / original[1])
        resized = np.maximum(np.round(original * scale), 1)
        letterbox.append([*original, *resized])
    return Heads(
        [np.stack(level) for level in zip(*logits, strict=True)],
        [np.stack(level) for level in zip(*deltas, strict=True)],
        np.array(letterbox, np.float32),
    )


def _picture(spec, kind, rng):
    threshold = spec.score_threshold_logit
    logits, deltas = [], []
    for level in range(len(spec.strides)):
        height, width = spec.feature_size(level)
        shape = (spec.anchors_per_cell * len(spec.classes), height, width)
        count = int(np.prod(shape))
        # distinct below the threshold, and as distinct above it
        flat = rng.permutation(np.linspace(threshold - 6, threshold - 0.01, count)).astype(np.float32)
        above = {
            "none": 0,
            "one": int(level == len(spec.strides) - 1),
            "few": 4,
            "ties": spec.topk_candidates,
            "many": 3 * spec.topk_candidates,
            "crowd": 2 * spec.topk_candidates,
            "absurd": 30,
        }[kind]
        index = rng.permutation(count)[: min(above, count)]
        if kind == "crowd":
            index = np.sort(rng.permutation(count)[: len(index)])
            index = index[index // (height * width) % len(spec.classes) == 0]  # all of the first class
        values = rng.permutation(np.linspace(threshold + 0.01, threshold + 7, len(index)))
        if kind == "ties":
            values = np.ceil(values - threshold) / 2 + threshold + 0.25
        flat[index] = values
        if kind == "none":
            flat[0] = np.float32(threshold)  # equal to the threshold is not above it
        spread = {"absurd": 20.0, "crowd": 0.05}.get(kind, 0.4)
        logits.append(flat.reshape(shape))
        deltas.append(rng.normal(0, spread, (spec.anchors_per_cell * 4, height, width)).astype(np.float32))
    return logits, deltas


def reference_candidates(spec, heads):
    return reference.decode(heads.logits, heads.deltas, spec.ends(heads.letterbox), **spec.decoding)


def reference_detections(spec, heads):
    return reference.nms(
        *reference_candidates(spec, heads),
        spec.ends(heads.letterbox),
        iou=spec.nms_iou,
        max_detections=spec.max_detections,
    )


def assert_equal_detections(found, expected):
    """Counts, classes and order exactly, boxes within 1e-3 pixels, scores within 1e-5; the types as well."""
    for a, b in zip(found, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    counts, boxes, scores, classes = found
    assert counts.tolist() == expected[0].tolist()
    assert classes.tolist() == expected[3].tolist()
    np.testing.assert_allclose(boxes, expected[1], rtol=0, atol=1e-3)
    np.testing.assert_allclose(scores, expected[2], rtol=0, atol=1e-5)
    for image, count in enumerate(counts[:, 0]):
        assert not boxes[image, count:].any() and not scores[image, count:].any()
