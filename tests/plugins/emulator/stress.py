"""Four streams at once, thousands of launches, each compared with its first bit for bit.

    python -m tests.plugins.emulator.stress build/gpu/libretinaserve_kernels.so --seconds 45

What a missing fence, or an assumption about who is first, would break, and no sanitizer sees. Scratch and outputs
are garbage before every comparison. Each thread has CUDA's stream of its own; the CPU emulation has one.
"""

import argparse
import sys
import threading
import time
from ctypes import byref, c_void_p
from pathlib import Path

import numpy as np

from tests.plugins.emulator.bench import CLAMP, DETECTIONS, IOU, LOGIT, STRIDES, TOPK, anchor_table, heads
from tests.plugins.emulator.native import DecodeProblem, Kernels, Memory, NmsProblem, garbage, laid_out

OWN_STREAM = c_void_p(2)  # cudaStreamPerThread
EVERY = 4  # launches a comparison
JOBS = ((640, 8, "trained", "kHWC8"), (640, 2, "untrained", "linear"), (1280, 1, "untrained", "kHWC8"),
        (320, 16, "trained", "kHWC8"))  # fmt: skip


def job(kernels, size, batch, network, layout, classes, seconds, found):
    """Run decode and NMS again and again; append (launches, comparisons that differ)."""
    logits, deltas = heads(size, batch, classes, network)
    decode = DecodeProblem.create(
        batch, [level.shape[2:] for level in logits], classes=classes, anchors=anchor_table(), strides=STRIDES,
        threshold_logit=LOGIT, topk=TOPK, delta_clamp=CLAMP, half_precision=True, layout=layout,
    )  # fmt: skip
    slots = kernels.library.retinaserveDecodeSlots(byref(decode))
    nms = NmsProblem(batch, slots, DETECTIONS, IOU)
    letterbox = Memory(kernels, np.full((batch, 4), size, np.float32))
    stored = [[Memory(kernels, laid_out(level, layout)) for level in part] for part in (logits, deltas)]
    given = [(c_void_p * len(part))(*(each.address for each in part)) for part in stored]
    shapes = (
        (batch, slots), (batch, slots, 4), (batch, slots),
        (batch,), (batch, DETECTIONS, 4), (batch, DETECTIONS), (batch, DETECTIONS),
        *((kernels.scratch_bytes(problem) // 4,) for problem in (decode, nms)),
    )  # fmt: skip
    buffers = [Memory(kernels, garbage(shape, np.float32)) for shape in shapes]
    candidates, detections = ([each.address for each in part] for part in (buffers[:3], buffers[3:7]))
    kept, first, launches, wrong = kernels.memory_kept(), None, 0, 0
    end = time.monotonic() + seconds
    while launches < 2 * EVERY or time.monotonic() < end:
        for _ in range(EVERY):
            kernels.check(kernels.library.retinaserveDecode(
                byref(decode), *given, letterbox.address, *candidates, buffers[7].address, kept.address, OWN_STREAM
            ))  # fmt: skip
            kernels.check(kernels.library.retinaserveNms(
                byref(nms), *candidates, letterbox.address, *detections, buffers[8].address, OWN_STREAM
            ))  # fmt: skip
            launches += 1
        now = [each.read().tobytes() for each in buffers[:7]]
        wrong += first is not None and now != first
        first = first or now
        for each in buffers:
            each.write(garbage(each.shape, np.float32))
    found.append((size, batch, network, layout, launches, wrong))


def main():
    """Exit with 1 where a launch gave something else than the first."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("library", type=Path)
    parser.add_argument("--seconds", type=float, default=45)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--jobs", type=int, default=len(JOBS), help="streams")
    asked = parser.parse_args()
    kernels, found = Kernels(asked.library), []
    threads = [
        threading.Thread(target=job, args=(kernels, *each, asked.classes, asked.seconds, found))
        for each in JOBS[-asked.jobs :]
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    for size, batch, network, layout, launches, wrong in found:
        print(f"{size} x {size}, batch {batch}, {network}, {layout}: {launches} launches, {wrong} differ")
    sys.exit(len(found) < len(threads) or any(each[-1] for each in found))


if __name__ == "__main__":
    main()
