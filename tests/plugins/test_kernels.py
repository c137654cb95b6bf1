"""The kernels against the reference: random problems, and the ones that are hard for kernels in particular.

The order, classes and count of candidates and detections are equal exactly, in FP16 as in FP32, since the
arithmetic is float32 behind the loads. NMS gets the kernels' own candidates, so that an exp() that differs in the
last bit does not decide about an overlap of just the threshold; its boxes are equal to the bit.
"""

import ctypes
import math

import numpy as np
import pytest

from retinaserve.plugins import reference
from tests.plugins.emulator import native
from tests.plugins.libraries import DEVICES, kernels_on, require_compiler

CLAMP = math.log(1000 / 16)
BOX_TOLERANCE = 1e-3  # pixels
SCORE_TOLERANCE = 1e-5
TOPKS = (1, 7, 100, 1000, 1500, 4096)
RANDOM_CASES = {"cpu": 300, "gpu": 1000}
CHUNKS = 10


def compare(kernels, heads, letterbox, settings, *, iou=0.5, max_detections=100, layout="linear"):
    """Run decode and NMS of the kernels and of the reference; return both results of NMS' counts."""
    found = kernels.decode(*heads, letterbox, layout=layout, **settings)
    expected = reference.decode(*heads, letterbox, **settings)
    assert [(a.shape, a.dtype) for a in found] == [(a.shape, a.dtype) for a in expected]
    assert np.array_equal(found[0], expected[0]) and np.array_equal(found[2], expected[2])
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=BOX_TOLERANCE)
    return compare_nms(kernels, found, letterbox, iou=iou, max_detections=max_detections)


def compare_nms(kernels, candidates, letterbox, *, iou=0.5, max_detections=100):
    found = kernels.nms(*candidates, letterbox, iou=iou, max_detections=max_detections)
    expected = reference.nms(*candidates, letterbox, iou=iou, max_detections=max_detections)
    assert [(a.shape, a.dtype) for a in found] == [(a.shape, a.dtype) for a in expected]
    assert np.array_equal(found[0], expected[0]) and np.array_equal(found[3], expected[3])
    assert np.array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[2], expected[2], rtol=0, atol=SCORE_TOLERANCE)
    return found[0][:, 0].tolist()


def settings(anchors, strides, *, threshold=-2.0, topk=1000):
    return {
        "anchors": anchors, "strides": strides, "threshold_logit": threshold, "topk": topk, "delta_clamp": CLAMP,
    }  # fmt: skip


def random_problem(rng):
    """Return heads, letterbox and settings: any number of levels, odd sizes, ties, empty and crowded pictures."""
    levels, anchors, batch = int(rng.integers(1, 7)), int(rng.integers(1, 10)), int(rng.integers(1, 4))
    classes = int(rng.choice([1, 2, 3, 20, 80]))
    sizes = rng.integers(1, 1 + (24 if classes < 20 else 8), (levels, 2)).tolist()
    strides = [int(2 ** rng.integers(0, 8)) for _ in range(levels)]
    corners = rng.uniform(-64, 64, (levels, anchors, 4)).astype(np.float32)
    corners[..., 2:] = corners[..., :2] + rng.uniform(0, 100, (levels, anchors, 2))
    dtype = rng.choice([np.float16, np.float32])
    step = rng.choice([0, 0.25, 2])  # logits on a grid are often equal
    logits, deltas = [], []
    for height, width in sizes:
        level = rng.normal(
            rng.choice([-9, -3, 1]), rng.choice([0.5, 2]), (batch, anchors * classes, height, width)
        )
        logits.append((np.round(level / step) * step if step else level).astype(dtype))
        spread = rng.choice([0.05, 0.5, 20])
        deltas.append(rng.normal(0, spread, (batch, anchors * 4, height, width)).astype(dtype))
    letterbox = rng.integers(1, 900, (batch, 4)).astype(np.float32)
    topk = int(rng.choice(TOPKS))
    return (logits, deltas), letterbox, settings(corners, strides, threshold=rng.choice([-2.9, 0, 1]), topk=topk)


@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("device", DEVICES)
def test_random_problems(device, chunk):
    kernels = kernels_on(device)
    detections = 0
    for case in range(RANDOM_CASES[device] // CHUNKS):
        rng = np.random.default_rng([chunk, case])
        heads, letterbox, how = random_problem(rng)
        if device == "cpu":
            kernels.set_schedule(case)  # forwards, backwards, then shuffled
        kernels.keeps = bool(rng.integers(2))
        iou, most = rng.choice([0, 0.3, 0.5, 1]), int(rng.choice([1, 20, 100, 300]))
        layout = rng.choice(list(native.LAYOUTS))
        found = compare(kernels, heads, letterbox, how, iou=iou, max_detections=most, layout=layout)
        detections += sum(found)
    assert detections


ANCHOR = np.array([[[0, 0, 8, 8]]], np.float32)


def one_level(values, channels, height, width, dtype=np.float32, seed=3):
    """Return heads of one level and a letterbox that clips nothing; values: (A*C*h*w) logits."""
    logits = np.asarray(values, dtype).reshape(1, channels, height, width)
    deltas = np.random.default_rng(seed).normal(0, 0.3, (1, 4, height, width)).astype(dtype)
    return ([logits], [deltas]), np.full((1, 4), 9999, np.float32)


SIZE = 90 * 57 * 61  # several blocks a level, and no multiple of anything


@pytest.mark.parametrize(
    ("dtype", "layout"), [(np.float16, "linear"), (np.float32, "linear"), (np.float16, "kHWC8")]
)
@pytest.mark.parametrize(
    "values",
    [
        pytest.param(lambda rng: np.full(SIZE, -9.0), id="nothing above the threshold"),
        pytest.param(lambda rng: np.full(SIZE, 1.5), id="all equal: the first thousand"),
        pytest.param(lambda rng: np.where(np.arange(SIZE) < SIZE - 1, -9, 3), id="only the last"),
        pytest.param(lambda rng: np.arange(SIZE) / SIZE, id="ever better: a buffer fills again and again"),
        pytest.param(lambda rng: -np.arange(SIZE) / SIZE, id="ever worse"),
        pytest.param(lambda rng: rng.integers(0, 3, SIZE), id="three values: ties at the cut"),
        pytest.param(lambda rng: rng.normal(0, 3, SIZE), id="an untrained network"),
        pytest.param(lambda rng: np.where(rng.random(SIZE) < 0.5, np.inf, -np.inf), id="infinite"),
        pytest.param(lambda rng: np.where(rng.random(SIZE) < 0.01, 1, np.nan), id="not numbers, among numbers"),
    ],
)
@pytest.mark.parametrize("device", DEVICES)
def test_a_level_of_several_blocks(device, values, dtype, layout):
    heads, letterbox = one_level(values(np.random.default_rng(0)), 90, 57, 61, dtype)
    with np.errstate(invalid="ignore"):  # infinite logits have a score all the same
        compare(kernels_on(device), heads, letterbox, settings(ANCHOR, (8,)), layout=layout)


@pytest.mark.parametrize("device", DEVICES)
def test_minus_zero_is_zero(device):
    values = np.full(600, -1.0)
    values[::2] = 0.0
    values[::6] = -0.0  # equal to the threshold below, and to the zeros beside it above one
    heads, letterbox = one_level(values, 6, 10, 10)
    assert compare(kernels_on(device), heads, letterbox, settings(ANCHOR, (8,), threshold=0.0)) == [0]
    compare(kernels_on(device), heads, letterbox, settings(ANCHOR, (8,), threshold=-0.5, topk=60))


@pytest.mark.parametrize("device", DEVICES)
def test_more_levels_and_anchors_than_a_launch_takes(device):
    rng = np.random.default_rng(1)
    anchors = np.zeros((19, 50, 4), np.float32)
    anchors[..., 2:] = rng.uniform(1, 60, (19, 50, 2))
    sizes = rng.integers(1, 6, (19, 2))
    logits = [rng.normal(-2, 1, (2, 100, h, w)).astype(np.float32) for h, w in sizes]
    deltas = [rng.normal(0, 0.3, (2, 200, h, w)).astype(np.float32) for h, w in sizes]
    letterbox = np.full((2, 4), 300, np.float32)
    compare(kernels_on(device), (logits, deltas), letterbox, settings(anchors, (8,) * 19, topk=300))


@pytest.mark.parametrize("device", DEVICES)
def test_more_segments_than_are_kept_are_cleared_in_scratch(device):
    """The last level's, of two blocks each, would lie behind what is kept."""
    kernels = kernels_on(device)
    kernels.keeps = True
    levels, batch, anchors = 129, 64, 65  # so many anchors make a launch of each level
    segment = 16  # bytes
    assert (levels - 1) * batch * segment >= native.KEPT_BYTES
    rng = np.random.default_rng(2)
    sizes = [(1, 1)] * (levels - 1) + [(20, 16)]
    logits = [rng.normal(-2, 1, (batch, anchors, h, w)).astype(np.float16) for h, w in sizes]
    deltas = [rng.normal(0, 0.3, (batch, 4 * anchors, h, w)).astype(np.float16) for h, w in sizes]
    table = np.zeros((levels, anchors, 4), np.float32)
    table[..., 2:] = rng.uniform(1, 60, (levels, anchors, 2))
    how = settings(table, (8,) * levels, topk=4)
    compare(kernels, (logits, deltas), np.full((batch, 4), 300, np.float32), how)


@pytest.mark.parametrize("device", DEVICES)
def test_indices_that_float32_does_not_hold(device):
    values = np.full(720 * 160 * 160, -9, np.float16)  # P3 of 1280 x 1280 pixels and 80 classes
    assert values.size > 2**24
    values[-5000::7] = np.linspace(-1, 2, len(values[-5000::7]))
    heads, letterbox = one_level(values, 720, 160, 160, np.float16)
    assert compare(kernels_on(device), heads, letterbox, settings(ANCHOR, (8,))) == [100]


@pytest.mark.gpu
def test_offsets_that_32_bits_do_not_hold():
    kernels = kernels_on("gpu")
    batch, channels = 240, 720
    logits = np.full((batch, channels, 160, 160), -9, np.float16)
    assert logits.size > 2**32
    rng = np.random.default_rng(0)
    for image in (0, 1, batch - 1):
        places = rng.integers(0, logits[0].size, 50)
        logits[image].reshape(-1)[places] = rng.normal(2, 1, 50)
    deltas = rng.normal(0, 0.3, (batch, 4, 160, 160)).astype(np.float16)
    letterbox = np.full((batch, 4), 1280, np.float32)
    found = kernels.decode([logits], [deltas], letterbox, **settings(ANCHOR, (8,)))
    for image in (0, 1, 100, batch - 1):
        one = slice(image, image + 1)
        expected = reference.decode([logits[one]], [deltas[one]], letterbox[one], **settings(ANCHOR, (8,)))
        assert np.array_equal(found[0][one], expected[0]) and np.array_equal(found[2][one], expected[2])
        np.testing.assert_allclose(found[1][one], expected[1], rtol=0, atol=BOX_TOLERANCE)


def crowd(rng, batch, count, *, classes, places, spread):
    """Return candidates around few places, in no order, some of them empty slots."""
    centres = rng.uniform(0, 900, (batch, places, 2))
    middle = np.take_along_axis(centres, rng.integers(0, places, (batch, count, 1)), axis=1)
    middle = middle + rng.normal(0, spread, (batch, count, 2))
    half = 20 + rng.uniform(0, 2, (batch, count, 2))
    boxes = np.concatenate((middle - half, middle + half), axis=2).clip(0, 1000).astype(np.float32)
    logits = rng.normal(0, 2, (batch, count)).astype(np.float32)
    logits[rng.random((batch, count)) < 0.1] = -np.inf
    logits[0] = logits[0].round()  # many ties
    return logits, boxes, rng.integers(0, classes, (batch, count)).astype(np.int32)


@pytest.mark.parametrize(
    ("count", "places", "classes", "most", "kept"),
    [
        pytest.param(1, 1, 1, 100, None, id="one candidate"),
        pytest.param(1024, 400, 3, 100, 100, id="chunks exactly, K reached"),
        pytest.param(1025, 5, 2, 100, None, id="chunks and one, K not reached"),
        pytest.param(5000, 20, 80, 100, 100, id="five levels, K reached early"),
        pytest.param(5000, 40, 1, 100, None, id="five levels, all chunks needed"),
        pytest.param(5000, 300, 1, 290, None, id="K reached late"),
        pytest.param(3073, 3000, 80, 4096, None, id="K beyond the candidates"),
    ],
)
@pytest.mark.parametrize("device", DEVICES)
def test_chunks_of_nms(device, count, places, classes, most, kept):
    rng = np.random.default_rng(count)
    candidates = crowd(rng, 2, count, classes=classes, places=places, spread=1.5)
    letterbox = np.array([[500, 700, 1000, 1000], [4000, 3000, 800, 900]], np.float32)
    found = compare_nms(kernels_on(device), candidates, letterbox, max_detections=most)
    assert kept is None or found == [kept, kept]


@pytest.mark.parametrize(
    ("count", "runs", "levels"),
    [
        pytest.param(5000, 5, 7, id="levels of decode"),
        pytest.param(4096, 32, 7, id="as many runs as are searched"),
        pytest.param(4092, 33, 7, id="one more"),
        pytest.param(9000, 3, 7, id="more than shared memory holds"),
        pytest.param(9000, 3, 1, id="all equal"),
    ],
)
@pytest.mark.parametrize("device", DEVICES)
def test_candidates_in_runs_that_are_best_first(device, count, runs, levels):
    rng = np.random.default_rng(runs)
    logits, boxes, classes = crowd(rng, 2, count, classes=3, places=400, spread=2)
    logits[0] = np.where(np.isinf(logits[0]), -np.inf, rng.integers(0, levels, count))
    logits = -np.sort(-logits.reshape(2, runs, -1)).reshape(2, count)
    letterbox = np.array([[500, 700, 1000, 1000], [4000, 3000, 800, 900]], np.float32)
    compare_nms(kernels_on(device), (logits, boxes, classes), letterbox, max_detections=200)


@pytest.mark.parametrize("device", DEVICES)
def test_pictures_do_not_depend_on_their_batch(device):
    kernels = kernels_on(device)
    heads, letterbox, how = random_problem(np.random.default_rng(11))
    batch = kernels.decode(*heads, letterbox, **how)
    found = kernels.nms(*batch, letterbox, iou=0.5, max_detections=50)
    assert len(letterbox) > 1
    for image in range(len(letterbox)):
        one = slice(image, image + 1)
        alone = kernels.decode(*([level[one] for level in part] for part in heads), letterbox[one], **how)
        assert all(np.array_equal(a, b[one]) for a, b in zip(alone, batch, strict=True))
        alone = kernels.nms(*alone, letterbox[one], iou=0.5, max_detections=50)
        assert all(np.array_equal(a, b[one]) for a, b in zip(alone, found, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_an_empty_batch_is_no_error(device):
    heads, letterbox = one_level(np.zeros(64), 1, 8, 8)
    nothing = [[level[:0] for level in part] for part in heads]
    found = kernels_on(device).decode(*nothing, letterbox[:0], **settings(ANCHOR, (8,)))
    assert [a.shape for a in found] == [(0, 64), (0, 64, 4), (0, 64)]
    found = kernels_on(device).nms(*found, letterbox[:0], iou=0.5, max_detections=9)
    assert [a.shape for a in found] == [(0, 1), (0, 9, 4), (0, 9), (0, 9)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"topk": 0}, "topk must be 1 to 4096"),
        ({"topk": 4097}, "topk must be 1 to 4096"),
        ({"threshold_logit": math.nan}, "threshold_logit must be finite"),
        ({"strides": (0,)}, "a stride of 1 or more"),
        ({"anchors": np.zeros((1, 129, 4))}, "anchors a cell must be 1 to 128"),
    ],
    ids=str,
)
def test_a_decode_that_cannot_be(change, message):
    heads, letterbox = one_level(np.zeros(129 * 4), 129, 2, 2)
    with pytest.raises(ValueError, match=message):
        kernels_on("cpu").decode(*heads, letterbox, **(settings(ANCHOR, (8,)) | change))


@pytest.mark.parametrize(("most", "iou"), [(0, 0.5), (4097, 0.5), (9, -0.1), (9, 1.5), (9, math.nan)])
def test_an_nms_that_cannot_be(most, iou):
    candidates = crowd(np.random.default_rng(0), 1, 9, classes=1, places=1, spread=1)
    with pytest.raises(ValueError, match=r"max_detections must be 1 to 4096|iou must be 0 to 1"):
        kernels_on("cpu").nms(*candidates, np.ones((1, 4), np.float32), iou=iou, max_detections=most)


def scratch_bytes(batch, size, classes=80):
    """Return scratch bytes of decode and NMS, for levels P3 to P7 with 9 anchors a cell."""
    kernels = kernels_on("cpu")
    sizes = [(-(-size // stride),) * 2 for stride in (8, 16, 32, 64, 128)]
    how = settings(np.zeros((5, 9, 4)), (8, 16, 32, 64, 128))
    decode = native.DecodeProblem.create(batch, sizes, classes=classes, half_precision=True, **how)
    return kernels.scratch_bytes(decode), kernels.scratch_bytes(native.NmsProblem(batch, 5000, 100, 0.5))


def test_scratch_grows_with_topk_and_not_with_the_maps():
    whole = scratch_bytes(8, 1280)[0]
    assert whole <= 1.01 * (1024 + 5 * 8) * 1000 * 8  # blocks x top-k x 8 bytes: see plugins/README.md
    assert scratch_bytes(8, 5120)[0] == whole
    for batch in range(1, 9):
        for size in (64, 300, 640, 1280):
            assert all(a <= b for a, b in zip(scratch_bytes(batch, size), scratch_bytes(8, 1280), strict=True))


FAULTY = """
#include "cuda_on_cpu.h"

struct Arguments
{
    int32_t* out;
};

// Thread i passes i on to its neighbour; without the barrier the neighbour may read too early.
template <bool kBARRIER>
inline void passOn(Arguments const args)
{
    int32_t* const shared = &retinaserve::dynamicShared<int32_t>();
    shared[threadIdx.x] = static_cast<int32_t>(threadIdx.x);
    if (kBARRIER)
    {
        __syncthreads();
    }
    args.out[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}

inline void skip(Arguments const)
{
    if (threadIdx.x != 3)
    {
        __syncthreads();
    }
}

extern "C" int32_t run(int32_t which, uint32_t schedule, int32_t* out)
{
    void (*const kernels[])(Arguments const){passOn<true>, passOn<false>, skip};
    shim::setSchedule(schedule);
    return retinaserve::launch(kernels[which], dim3(1), dim3(64), 256, nullptr, Arguments{out});
}
"""


def test_the_emulation_notices_barriers_that_are_missing_or_skipped(tmp_path):
    require_compiler()
    source = tmp_path / "faulty.cpp"
    source.write_text(FAULTY)
    library = ctypes.CDLL(native.compile_for_cpu(tmp_path / "faulty.so", [source]))
    out = (ctypes.c_int32 * 64)()
    passed_on = [*range(1, 64), 0]
    for schedule in (0, 1, 2, 3):
        assert library.run(0, schedule, out) == 0 and list(out) == passed_on
        assert library.run(1, schedule, out) == 0 and list(out) != passed_on
    assert library.run(2, 0, out) == 719
    assert library.run(0, 0, out) == 0 and list(out) == passed_on  # a later launch is not harmed
