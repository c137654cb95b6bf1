"""Golden cases, made by hand, and loops over the definition: for the reference and for the kernels alike."""

import math

import numpy as np
import pytest

from retinaserve.plugins import reference
from retinaserve.plugins.reference import iou_matrix
from tests.plugins.libraries import DEVICES, kernels_on

CLAMP = math.log(1000 / 16)
THRESHOLD = -2.0
EMPTY = -np.inf


@pytest.fixture(params=["reference", *DEVICES])
def engine(request):
    """What decodes and suppresses: functions of one signature."""
    return reference if request.param == "reference" else kernels_on(request.param)


def heads(shape, *, fill=-9.0, dtype=np.float32, anchors=1, classes=1, batch=1):
    height, width = shape
    logits = np.full((batch, anchors * classes, height, width), fill, dtype)
    deltas = np.zeros((batch, anchors * 4, height, width), dtype)
    return logits, deltas


def whole(height, width, batch=1):
    return np.tile(np.array([height, width, height, width], np.float32), (batch, 1))


def run(engine, logits, deltas, letterbox, *, anchors=((0, 0, 8, 8),), stride=8, topk=1000):
    table = np.array([anchors], np.float32)
    return engine.decode(
        [logits], [deltas], letterbox, anchors=table, strides=(stride,), threshold_logit=THRESHOLD, topk=topk,
        delta_clamp=CLAMP,
    )  # fmt: skip


def test_nothing_above_the_threshold_leaves_every_slot_empty(engine):
    logits, deltas = heads((3, 5), fill=THRESHOLD)  # equal to it is not above it
    best, boxes, classes = run(engine, logits, deltas, whole(24, 40))
    assert best.shape == (1, 15)
    assert (best == EMPTY).all()
    assert not boxes.any() and not classes.any()
    assert not any(
        part.any() for part in engine.nms(best, boxes, classes, whole(24, 40), iou=0.5, max_detections=4)
    )


# One anchor (2, 4, 10, 8) at cell x=3, y=1 of stride 8: centre (6, 6) + (24, 8) = (30, 14), size 8 x 4.
@pytest.mark.parametrize(
    ("delta", "area", "expected"),
    [
        pytest.param((0, 0, 0, 0), (24, 40), (26, 12, 34, 16), id="the anchor itself"),
        pytest.param((0.5, -1, 0, 0), (24, 40), (30, 8, 38, 12), id="shifted by half a width, up a height"),
        pytest.param((0, 0, math.log(0.5), math.log(3)), (24, 40), (28, 8, 32, 20), id="half as wide, 3x high"),
        pytest.param((1, 0, 0, 0), (24, 36), (34, 12, 36, 16), id="clipped to the resized width"),
        pytest.param((0, 1, 0, 0), (17, 40), (26, 16, 34, 17), id="clipped to the resized height"),
        pytest.param((-4, -4, 0, 0), (24, 40), (0, 0, 2, 0), id="clipped at the origin to no area"),
        pytest.param((0, 0, 20, 0), (24, 400), (0, 12, 280, 16), id="dw of 20 is clamped: 8 * 62.5 = 500 wide"),
    ],
)
def test_decode_by_hand(engine, delta, area, expected):
    logits, deltas = heads((3, 5))
    logits[0, 0, 1, 3] = 1.5
    deltas[0, :, 1, 3] = delta
    best, boxes, _ = run(engine, logits, deltas, whole(*area), anchors=[(2, 4, 10, 8)])
    assert best[0, 0] == 1.5 and (best[0, 1:] == EMPTY).all()
    np.testing.assert_allclose(boxes[0, 0], expected, atol=1e-4)


def test_channels_are_anchor_major_and_equal_logits_go_by_flat_index(engine):
    logits, deltas = heads((2, 2), anchors=2, classes=3)
    deltas[0, 5] = 1.0  # dy of the second anchor: one height down
    logits[0, 1 * 3 + 2, 0, 1] = 0.5  # anchor 1, class 2, flat index 21
    logits[0, 0 * 3 + 1, 1, 0] = 0.5  # anchor 0, class 1, flat index 6
    logits[0, 0 * 3 + 2, 1, 1] = 0.5  # anchor 0, class 2, flat index 11
    logits[0, 1 * 3 + 0, 0, 0] = 0.75  # anchor 1, class 0, flat index 12
    best, boxes, classes = run(engine, logits, deltas, whole(16, 16), anchors=[(0, 0, 8, 8), (0, 0, 4, 4)])
    assert best[0, :5].tolist() == [0.75, 0.5, 0.5, 0.5, EMPTY]
    assert classes[0, :4].tolist() == [0, 1, 2, 2]
    assert boxes[0, :4].tolist() == [[0, 4, 4, 8], [0, 8, 8, 16], [8, 8, 16, 16], [8, 4, 12, 8]]


@pytest.mark.parametrize(
    ("count", "topk", "expected"),
    [
        pytest.param(0, 3, [], id="none"),
        pytest.param(1, 3, [0], id="one"),
        pytest.param(3, 3, [0, 1, 2], id="as many as fit"),
        pytest.param(5, 3, [4, 0, 1], id="more than fit: the best, then equal ones by index"),
        pytest.param(5, 99, [4, 0, 1, 2, 3], id="a limit above the size of the map"),
    ],
)
def test_topk_of_a_level(engine, count, topk, expected):
    logits, deltas = heads((1, 6))
    logits[0, 0, 0, :count] = 1.0
    if count == 5:
        logits[0, 0, 0, 4] = 2.0
    best, boxes, _ = run(engine, logits, deltas, whole(8, 48), topk=topk)
    assert best.shape == (1, min(topk, 6))
    filled = best[0] > EMPTY
    assert (boxes[0, filled, 0] / 8).tolist() == expected
    assert not boxes[0, ~filled].any()


def test_float16_heads_are_computed_in_float32(engine):
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 2, (2, 6, 5, 7)).astype(np.float16)
    deltas = rng.normal(0, 0.5, (2, 8, 5, 7)).astype(np.float16)
    anchors = [(0, 0, 300, 200), (-9, 0, 17, 8)]
    half = run(engine, logits, deltas, whole(40, 56, 2), anchors=anchors)
    single = run(engine, logits.astype(np.float32), deltas.astype(np.float32), whole(40, 56, 2), anchors=anchors)
    assert all(part.dtype != np.float16 for part in half)
    assert all((a == b).all() for a, b in zip(half, single, strict=True))


@pytest.mark.parametrize(
    ("first", "second", "iou"),
    [
        pytest.param((0, 0, 0, 0), (0, 0, 0, 0), 0.0, id="two points: an empty union is no overlap"),
        pytest.param((3, 1, 3, 9), (3, 1, 3, 9), 0.0, id="one line twice"),
        pytest.param((0, 0, 4, 4), (2, 2, 2, 2), 0.0, id="a point inside"),
        pytest.param((0, 0, 4, 4), (4, 0, 8, 4), 0.0, id="neighbours: half-open boxes do not touch"),
        pytest.param((0, 0, 4, 4), (5, 5, 6, 6), 0.0, id="apart on both axes"),
        pytest.param((0, 0, 4, 4), (0, 0, 4, 4), 1.0, id="equal"),
        pytest.param((0, 0, 4, 4), (0, 0, 4, 2), 0.5, id="half"),
        pytest.param((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7, id="a corner"),
    ],
)
def test_iou_by_hand(first, second, iou):
    for dtype in (np.float32, np.float64):
        matrix = iou_matrix(np.array([first, (90, 90, 99, 99)], dtype), np.array([second], dtype))
        assert matrix.dtype == dtype
        assert matrix == pytest.approx(np.array([[iou], [0]]))


def test_iou_of_no_boxes():
    assert iou_matrix(np.zeros((0, 4)), np.zeros((3, 4))).shape == (0, 3)
    assert iou_matrix(np.zeros((3, 4)), np.zeros((0, 4))).shape == (3, 0)


BASE = (0.0, 0.0, 10.0, 10.0)
HALF = (0.0, 0.0, 10.0, 5.0)
MORE = (0.0, 0.0, 10.0, 5.01)
LINE = (3.0, 3.0, 3.0, 9.0)
FAR = (20.0, 20.0, 30.0, 30.0)


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        pytest.param([], [], id="none"),
        pytest.param([(BASE, 1.0, 0)], [0], id="one"),
        pytest.param([(BASE, 1.0, 0), (HALF, 0.5, 0)], [0, 1], id="an IoU of exactly 0.5 stays"),
        pytest.param([(BASE, 1.0, 0), (MORE, 0.5, 0)], [0], id="one above 0.5 goes"),
        pytest.param([(MORE, 0.5, 0), (BASE, 1.0, 0)], [1], id="the better one stays, wherever it stands"),
        pytest.param([(BASE, 1.0, 0), (BASE, 0.5, 1)], [0, 1], id="another class stays"),
        pytest.param([(BASE, 1.0, 0), (BASE, 1.0, 0)], [0], id="equal logits: the earlier one stays"),
        pytest.param([(FAR, 0.5, 1), (BASE, 0.5, 0)], [0, 1], id="equal logits keep their order"),
        pytest.param([(LINE, 1.0, 0), (LINE, 1.0, 0)], [0, 1], id="boxes without area overlap nothing"),
        pytest.param(
            [((0, 0, 10, 10), 3.0, 0), ((0, 3, 10, 13), 2.0, 0), ((0, 6, 10, 16), 1.0, 0)], [0, 2],
            id="what is suppressed suppresses nothing",
        ),
        pytest.param([(FAR, EMPTY, 0), (BASE, -1.0, 0)], [1], id="an empty slot is no candidate"),
        pytest.param([((i * 20, 0, i * 20 + 9, 9), i, 0) for i in range(6)], [5, 4, 3, 2], id="the best K"),
    ],
)  # fmt: skip
def test_nms_by_hand(engine, rows, kept):
    boxes = np.array([row[0] for row in rows], np.float32).reshape(1, -1, 4)
    logits = np.array([row[1] for row in rows], np.float32).reshape(1, -1)
    classes = np.array([row[2] for row in rows], np.int32).reshape(1, -1)
    count, out, scores, labels = engine.nms(logits, boxes, classes, whole(99, 999), iou=0.5, max_detections=4)
    n = len(kept)
    assert [a.dtype for a in (count, out, scores, labels)] == [np.int32, np.float32, np.float32, np.int32]
    assert [a.shape for a in (count, out, scores, labels)] == [(1, 1), (1, 4, 4), (1, 4), (1, 4)]
    assert count[0, 0] == n
    assert (out[0, :n] == boxes[0, kept]).all() and (labels[0, :n] == classes[0, kept]).all()
    np.testing.assert_allclose(scores[0, :n], [1 / (1 + math.exp(-logits[0, i])) for i in kept], rtol=1e-6)
    assert not out[0, n:].any() and not scores[0, n:].any() and not labels[0, n:].any()


def test_the_letterbox_is_undone_per_axis_and_clipped_to_the_original(engine):
    boxes = np.array([[[10, 20, 30, 40], [0, 0, 64, 48]]], np.float32)
    letterbox = np.array([[97, 256, 48, 64]], np.float32)  # 97 / 48 down, 256 / 64 = 4 across
    _, out, _, _ = engine.nms(
        np.ones((1, 2), np.float32), boxes, np.zeros((1, 2), np.int32), letterbox, iou=0.5, max_detections=2
    )
    np.testing.assert_allclose(out[0, 0], [40, 20 * 97 / 48, 120, 40 * 97 / 48], rtol=1e-6)
    assert (out[0, 1] <= [256, 97, 256, 97]).all()
    np.testing.assert_allclose(out[0, 1], [0, 0, 256, 97], rtol=1e-6)


def brute_force(logits, deltas, letterbox, *, anchors, strides, topk, iou, limit):
    """One image with Python floats and loops, straight from the definition."""
    found = []
    for level, (table, stride) in enumerate(zip(anchors.tolist(), strides, strict=True)):
        channels, height, width = logits[level].shape
        labels = channels // len(table)
        ranked = sorted(
            (-float(logits[level][channel, y, x]), channel, y, x)
            for channel in range(channels)
            for y in range(height)
            for x in range(width)
            if logits[level][channel, y, x] > THRESHOLD
        )
        for negative, channel, y, x in ranked[:topk]:
            x1, y1, x2, y2 = table[channel // labels]
            first = channel // labels * 4
            dx, dy, dw, dh = (float(deltas[level][first + i, y, x]) for i in range(4))
            cx = x * stride + (x1 + x2) / 2 + dx * (x2 - x1)
            cy = y * stride + (y1 + y2) / 2 + dy * (y2 - y1)
            w, h = (x2 - x1) * math.exp(min(dw, CLAMP)), (y2 - y1) * math.exp(min(dh, CLAMP))
            corners = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
            limits = (letterbox[3], letterbox[2]) * 2
            box = tuple(min(max(v, 0.0), float(m)) for v, m in zip(corners, limits, strict=True))
            found.append((negative, len(found), channel % labels, box))
    kept = []
    for candidate in sorted(found):
        if all(candidate[2] != other[2] or overlap(candidate[3], other[3]) <= iou for other in kept):
            kept.append(candidate)
    sx, sy = letterbox[1] / letterbox[3], letterbox[0] / letterbox[2]
    return [
        (label, 1 / (1 + math.exp(negative)), (x1 * sx, y1 * sy, x2 * sx, y2 * sy))
        for negative, _, label, (x1, y1, x2, y2) in kept[:limit]
    ]


def overlap(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(w, 0) * max(h, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union > 0 else 0.0


@pytest.mark.parametrize(
    ("classes", "topk", "limit"),
    [
        pytest.param(1, 1000, 100, id="one class, everything fits"),
        pytest.param(3, 40, 20, id="three classes, more candidates and survivors than fit"),
    ],
)
def test_against_loops_over_the_definition(engine, classes, topk, limit):
    rng = np.random.default_rng(classes)
    strides, sizes = (8, 16), ((9, 5), (5, 3))  # 72 x 40: no multiple of 16
    anchors = rng.uniform(-8, 24, (2, 2, 4)).astype(np.float32)
    anchors[..., 2:] = anchors[..., :2] + rng.uniform(4, 40, (2, 2, 2))
    logits = [(rng.normal(-1, 2, (3, 2 * classes, h, w)) * 4).round().astype(np.float32) / 4 for h, w in sizes]
    deltas = [rng.normal(0, 0.4, (3, 8, h, w)).astype(np.float32) for h, w in sizes]
    letterbox = np.array([[72, 40, 72, 40], [500, 211, 71, 30], [10, 20, 20, 40]], np.float32)
    best, boxes, labels = engine.decode(
        logits, deltas, letterbox, anchors=anchors, strides=strides, threshold_logit=THRESHOLD, topk=topk,
        delta_clamp=CLAMP,
    )  # fmt: skip
    counts, out, scores, out_labels = engine.nms(best, boxes, labels, letterbox, iou=0.5, max_detections=limit)
    for image in range(3):
        expected = brute_force(
            [level[image] for level in logits], [level[image] for level in deltas], letterbox[image].tolist(),
            anchors=anchors, strides=strides, topk=topk, iou=0.5, limit=limit,
        )  # fmt: skip
        n = int(counts[image, 0])
        assert n == len(expected) > 0
        assert out_labels[image, :n].tolist() == [label for label, _, _ in expected]
        np.testing.assert_allclose(scores[image, :n], [score for _, score, _ in expected], atol=1e-6)
        np.testing.assert_allclose(out[image, :n], [box for _, _, box in expected], atol=1e-3)
