"""How large the tensors of a float graph get on real images, and where to cut them off for INT8.

    histograms = collect(model, tensors, normalise(spec, images))
    threshold = THRESHOLDS["entropy"](histograms["relu_3"])       # scale = threshold / 127

A histogram holds absolute values, because the quantization is symmetric. All calibrators read the same histograms,
so the network runs once for all three, and a cache of them serves every later choice.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx

from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import whole
from retinaserve.training.images.letterbox import Canvas
from retinaserve.training.spec import NETWORK_INPUT, DetectorSpec

Calibrator = Literal["minmax", "percentile", "entropy"]
BINS = 4096
LEVELS = 128  # positive values of a signed byte, zero among them
STEP = 16  # bins between two thresholds that entropy tries
PERCENTILE = 99.99
FORMAT = 1  # of the cache; counts up when histograms are made otherwise


@dataclass
class Histogram:
    """Absolute values of a tensor: `counts` (BINS,) of equal width over [0, top], and the largest value."""

    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    top: float = 0.0
    largest: float = 0.0

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count the values; the range doubles, and bins merge in pairs, until the largest fits."""
        magnitudes = np.abs(values.ravel())
        largest = float(magnitudes.max(initial=0.0))
        if not np.isfinite(largest):
            raise UserError("a tensor is infinite or not a number on a calibration image", "train it anew")
        self.largest = max(self.largest, largest)
        if not largest:
            self.counts[0] += magnitudes.size
            return
        if not self.top:
            self.top = largest
        while largest > self.top:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([merged, np.zeros(BINS - len(merged), np.int64)])
            self.top *= 2
        magnitudes *= np.float32(BINS / self.top)
        places = np.minimum(magnitudes.astype(np.int32), BINS - 1)
        self.counts += np.bincount(places, minlength=BINS)


def entropy(histogram: Histogram) -> float:
    """Return the threshold whose quantized distribution has the least Kullback-Leibler divergence.

    The method of https://on-demand.gputechconf.com/gtc/2017/presentation/s7310-8-bit-inference-with-tensorrt.pdf,
    with the bin of the zeros, which a ReLU fills, made as high as its neighbour.
    """
    counts = histogram.counts.astype(np.float64)
    counts[0] = counts[1]
    used = int(np.flatnonzero(counts).max(initial=0)) + 1
    tried = range(LEVELS, max(used, LEVELS) + STEP, STEP)
    best = min(tried, key=lambda end: _divergence(counts, min(end, BINS)))
    return min(histogram.top * min(best, BINS) / BINS, histogram.largest)


def _divergence(counts: npt.NDArray[np.float64], end: int) -> float:
    """Return KL(p || q) of a cut after `end` bins: the tail is in the last bin of p, q has a byte's levels."""
    inside = counts[:end]
    p = inside.copy()
    p[-1] += counts[end:].sum()
    starts = np.arange(LEVELS) * end // LEVELS
    widths = np.diff(np.append(starts, end))
    filled = inside > 0
    total = np.add.reduceat(inside, starts)
    share = total / np.maximum(np.add.reduceat(filled.astype(np.float64), starts), 1)
    q = np.where(filled, np.repeat(share, widths), 0.0)
    if not p.sum() or not q.sum():
        return np.inf
    p, q = p / p.sum(), q / q.sum()
    both = p > 0
    return float(np.sum(p[both] * np.log(p[both] / np.maximum(q[both], 1e-12))))


def percentile(histogram: Histogram, share: float = PERCENTILE) -> float:
    """Return the value that `share` percent of all values, zeros included, do not exceed."""
    cumulative = np.cumsum(histogram.counts)
    place = int(np.searchsorted(cumulative, cumulative[-1] * share / 100))
    return min(histogram.top * (place + 1) / BINS, histogram.largest)


THRESHOLDS: Mapping[Calibrator, Callable[[Histogram], float]] = {
    "entropy": entropy,
    "percentile": percentile,
    "minmax": lambda histogram: histogram.largest,
}


def normalise(spec: DetectorSpec, images: Canvas) -> npt.NDArray[np.float32]:
    """Return images (..., 3, H, W) as the network takes them, as the graft's first layer makes them."""
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (spec.mean, spec.std))
    normalised: npt.NDArray[np.float32] = (images / np.float32(255) - mean) / std
    return normalised


def collect(
    model: onnx.ModelProto, tensors: Sequence[str], inputs: Iterable[npt.NDArray[np.float32]]
) -> dict[str, Histogram]:
    """Run raw heads on normalised images (3, H, W), one at a time; return the tensors' histograms by name."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError(
            "calibration runs the graph with onnxruntime, which is not installed",
            "pip install 'retinaserve[train]'",
            code=Exit.USAGE,
        ) from None
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    inner = [name for name in tensors if name != NETWORK_INPUT]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    histograms = {name: Histogram() for name in tensors}
    for image in inputs:
        values = dict(zip(inner, session.run(inner, {NETWORK_INPUT: image[None]}), strict=True))
        for name in tensors:
            histograms[name].add(values.get(name, image))
    return histograms


def cached(
    cache: Path | None, model: onnx.ModelProto, images: str, run: Callable[[], dict[str, Histogram]]
) -> dict[str, Histogram]:
    """Return `run()`, or what it was when graph and images (their hash) were the same; `cache` is a folder."""
    if cache is None:
        return run()
    graph = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    key = hashlib.sha256(f"{FORMAT} {graph} {images}".encode()).hexdigest()[:32]
    path = cache / f"{key}.npz"
    if path.is_file():
        with np.load(path) as stored:
            tops, largest = stored["top"].tolist(), stored["largest"].tolist()
            rows = zip(stored["names"].tolist(), stored["counts"], tops, largest, strict=True)
            return {name: Histogram(counts, top, most) for name, counts, top, most in rows}
    found = run()
    with whole(path) as (partial,):
        np.savez_compressed(
            partial,
            names=list(found),
            counts=np.stack([each.counts for each in found.values()]),
            top=[each.top for each in found.values()],
            largest=[each.largest for each in found.values()],
        )
    return found
