"""How long decode and NMS take on a GPU, against reading the logits once and against torchvision.

    python -m tests.plugins.emulator.bench --library build/gpu/libretinaserve_kernels.so --json bench.json

FP16 heads of levels P3 to P7, 9 anchors a cell. Times are medians of runs from a cold L2 cache, decode and NMS in
one CUDA graph. "Read" is the logits' bytes at the bandwidth that this GPU reads 1 GiB with, measured in the same
run. torchvision's own `RetinaNet.postprocess_detections` runs on the same values, already permuted as it wants
them, where torch and torchvision are there. No TensorRT: the engine around the plugins is not part of it.
"""

import argparse
import json
from ctypes import POINTER, byref, c_float, c_int32, c_size_t, c_void_p
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from tests.plugins.emulator.native import LAYOUTS, DecodeProblem, Kernels, Memory, NmsProblem, garbage, laid_out

STRIDES = (8, 16, 32, 64, 128)
ANCHORS, TOPK, DETECTIONS, IOU = 9, 1000, 100, 0.5
THRESHOLD, CLAMP = 0.05, float(np.log(1000 / 16))
LOGIT = float(np.log(THRESHOLD / (1 - THRESHOLD)))
FLUSH_BYTES, READ_BYTES = 1 << 28, 1 << 30
DECODE_ONLY, NMS_ONLY, BOTH = 1, 2, 3
HEADER = (
    "| size | batch | network | read, ms | decode | NMS | both | both / read | torchvision | faster |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Row:
    """A line of the table; milliseconds."""

    size: int
    batch: int
    network: str
    read: float
    decode: float
    nms: float
    both: float
    torchvision: float | None

    def text(self):
        other = f"{self.torchvision:.2f} | {self.torchvision / self.both:.0f}x" if self.torchvision else "- | -"
        times = f"{self.read:.4f} | {self.decode:.4f} | {self.nms:.4f} | {self.both:.4f}"
        return (
            f"| {self.size} | {self.batch} | {self.network} | {times} | {self.both / self.read:.2f}x | {other} |"
        )


def anchor_table():
    """Return (5, 9, 4): 3 scales and 3 ratios of 4 strides, centred half a stride into the cell."""
    sides = [(2 ** (scale / 3), ratio) for scale in range(3) for ratio in (0.5, 1.0, 2.0)]
    half = np.array([(2 * scale / ratio**0.5, 2 * scale * ratio**0.5) for scale, ratio in sides])  # in strides
    table = np.concatenate((0.5 - half, 0.5 + half), axis=1) * np.array(STRIDES)[:, None, None]
    return table.astype(np.float32)


def heads(size, batch, classes, network):
    """Return logits and deltas a level. "trained": a few thousand logits above the threshold, around 60 objects;
    "untrained": a third of all logits are above it."""
    rng = np.random.default_rng(0)
    logits, deltas = [], []
    for level, stride in enumerate(STRIDES):
        side = -(-size // stride)
        one = rng.standard_normal((ANCHORS, classes, side, side), np.float32)
        one += -9 if network == "trained" else -3.5
        if network == "trained":
            one = np.minimum(one, LOGIT - 0.01)
            for _ in range(60 if level == 0 else 20):
                y, x = rng.integers(0, side, 2)
                near = one[:, rng.integers(classes), max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
                near[:] = rng.normal(-1.5, 1.5, near.shape)
        flat = one.reshape(-1, side, side).astype(np.float16)
        logits.append(np.stack([np.roll(flat, image, axis=2) for image in range(batch)]))
        shape = (batch, ANCHORS * 4, side, side)
        deltas.append((rng.standard_normal(shape, np.float32) * 0.1).astype(np.float16))
    return logits, deltas


class Bench:
    """Times on one GPU."""

    def __init__(self, library, repeats):
        self.kernels = Kernels(library)
        self.repeats = repeats
        self.flush = Memory(self.kernels, garbage((FLUSH_BYTES,), np.uint8), is_scratch=True)
        native = self.kernels.library
        native.retinaserveTimeRead.argtypes = (c_void_p, c_size_t, c_void_p, c_size_t, c_int32, POINTER(c_float))
        native.retinaserveTimeDetect.argtypes = (
            POINTER(DecodeProblem), POINTER(NmsProblem), c_int32, POINTER(c_void_p), POINTER(c_void_p), c_void_p,
            POINTER(c_void_p), c_void_p, c_size_t, c_int32, POINTER(c_float),
        )  # fmt: skip

    def bandwidth(self):
        """Return the bytes a second at which this GPU reads."""
        data = Memory(self.kernels, np.zeros(READ_BYTES, np.uint8))
        median = self._median(self.kernels.library.retinaserveTimeRead, data.address, READ_BYTES)
        data.free()
        return READ_BYTES / (median / 1000)

    def detect(self, logits, deltas, classes, layout):
        """Return the milliseconds of decode, of NMS, and of both."""
        batch, levels = len(logits[0]), len(logits)
        sizes = [level.shape[2:] for level in logits]
        decode = DecodeProblem.create(
            batch, sizes, classes=classes, anchors=anchor_table(), strides=STRIDES, threshold_logit=LOGIT,
            topk=TOPK, delta_clamp=CLAMP, half_precision=True, layout=layout,
        )  # fmt: skip
        logits, deltas = ([laid_out(level, layout) for level in part] for part in (logits, deltas))
        slots = self.kernels.library.retinaserveDecodeSlots(byref(decode))
        nms = NmsProblem(batch, slots, DETECTIONS, IOU)
        letterbox = np.full((batch, 4), STRIDES[0] * sizes[0][0], np.float32)
        inputs = [Memory(self.kernels, array) for array in (*logits, *deltas, letterbox)]
        spaces = (
            (batch, slots), (batch, slots, 4), (batch, slots),
            (batch,), (batch, DETECTIONS, 4), (batch, DETECTIONS), (batch, DETECTIONS),
            *((self.kernels.scratch_bytes(problem) // 4,) for problem in (decode, nms)),
        )  # fmt: skip
        buffers = [Memory(self.kernels, garbage(shape, np.float32), is_scratch=True) for shape in spaces]
        buffers.append(self.kernels.memory_kept())

        def addresses(memories):
            return (c_void_p * len(memories))(*(each.address for each in memories))

        def time(parts):
            return self._median(
                self.kernels.library.retinaserveTimeDetect, byref(decode), byref(nms), parts,
                addresses(inputs[:levels]), addresses(inputs[levels:-1]), inputs[-1].address, addresses(buffers),
            )  # fmt: skip

        both = time(BOTH)  # first: NMS alone works on its candidates
        times = time(DECODE_ONLY), time(NMS_ONLY), both
        for memory in (*inputs, *buffers):
            memory.free()
        return times

    def _median(self, call, *arguments):
        """Return the median of a second run; the first one warms up."""
        out = (c_float * self.repeats)()
        for _ in range(2):
            self.kernels.check(call(*arguments, self.flush.address, FLUSH_BYTES, self.repeats, out))
        return float(np.median(np.array(out)))


def torchvision_milliseconds(logits, deltas, classes, repeats):
    """Return the time of torchvision's post-processing, or None where it is not installed."""
    try:
        import torch
        from torch.cuda import Event
        from torchvision.models.detection._utils import BoxCoder
        from torchvision.models.detection.retinanet import RetinaNet
    except ImportError:
        return None

    def rows(level, width):
        batch, _, height, across = level.shape
        maps = torch.from_numpy(level).cuda().view(batch, ANCHORS, width, height, across)
        return maps.permute(0, 3, 4, 1, 2).reshape(batch, -1, width)  # (B, A*C, h, w) -> (B, h*w*A, C)

    batch, side = len(logits[0]), STRIDES[0] * logits[0].shape[2]
    table = torch.from_numpy(anchor_table()).cuda()
    anchors = []
    for level, stride in enumerate(STRIDES):
        height, width = logits[level].shape[2:]
        y, x = torch.meshgrid(torch.arange(height).cuda(), torch.arange(width).cuda(), indexing="ij")
        origin = torch.stack((x, y, x, y), dim=-1).view(-1, 1, 4) * stride
        anchors.append((origin + table[level]).view(-1, 4))
    outputs = {
        "cls_logits": [rows(level, classes) for level in logits],
        "bbox_regression": [rows(level, 4) for level in deltas],
    }
    settings = SimpleNamespace(
        score_thresh=THRESHOLD, topk_candidates=TOPK, nms_thresh=IOU, detections_per_img=DETECTIONS,
        box_coder=BoxCoder(weights=(1.0, 1.0, 1.0, 1.0)),
    )  # fmt: skip
    times = []
    for _ in range(2 + max(3, repeats // 10)):
        start, stop = (Event(enable_timing=True) for _ in range(2))
        start.record()
        RetinaNet.postprocess_detections(settings, outputs, [anchors] * batch, [(side, side)] * batch)
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return float(np.median(times[2:]))


def main():
    """Print a table for docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--library", type=Path, required=True, help="the kernels' library")
    parser.add_argument("--sizes", type=int, nargs="+", default=[640, 1280], help="sides of the square input")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--layout", choices=LAYOUTS, default="kHWC8", help="of the heads; this is a plan's")
    parser.add_argument("--repeats", type=int, default=50, help="runs of which the median counts")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    asked = parser.parse_args()
    bench = Bench(asked.library, asked.repeats)
    bandwidth = bench.bandwidth()
    print(f"reads {bandwidth / 1e12:.2f} TB/s; {asked.classes} classes, FP16 in {asked.layout}, ", end="")
    print(f"medians of {asked.repeats}\n\n{HEADER}")
    rows = []
    for size in asked.sizes:
        for batch in asked.batches:
            for network in ("trained", "untrained"):
                logits, deltas = heads(size, batch, asked.classes, network)
                read = sum(level.nbytes for level in logits) / bandwidth * 1000
                times = bench.detect(logits, deltas, asked.classes, asked.layout)
                other = None
                if network == "trained":
                    other = torchvision_milliseconds(logits, deltas, asked.classes, asked.repeats)
                rows.append(Row(size, batch, network, read, *times, other))
                print(rows[-1].text(), flush=True)
    if asked.json:
        report = {"bytes_a_second": bandwidth, "classes": asked.classes, "rows": [asdict(row) for row in rows]}
        asked.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
