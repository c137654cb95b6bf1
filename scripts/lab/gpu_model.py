"""What decode and NMS should cost on GPUs that were not at hand: a model of bytes and steps, no measurement.

    python -m retinaserve.scripts.lab.gpu_model        # the table of docs/gpu.md

A block reads 32 logits a thread at a time. If its loads are waited for one after the other, that takes a latency
each; if they are under way together, one. Bytes go at the memory's rate at most. Launches and chains of dependent
steps come on top whatever the batch. Loads in flight, blocks an SM and launches are those of SASS, ptxas, source.
"""

from dataclasses import dataclass

from retinaserve.scripts.lab import run

# Memory, bytes a microsecond that a kernel reaches; SMs.
GPUS = {"T4": (0.27e6, 40), "A10": (0.5e6, 72), "L4": (0.26e6, 58), "H200": (4.2e6, 132), "B200": (7.0e6, 148)}
CASES = ((640, 8), (640, 32), (1280, 8), (1280, 32))
STRIDES, CHANNELS = (8, 16, 32, 64, 128), 720  # 9 anchors, 80 classes
LATENCY, ISSUE, LAUNCH = 0.75, 0.4, 1.5  # microseconds: a load from memory; 32 logits a thread compared; a node
THREADS, VALUES = 512, 32


@dataclass(frozen=True)
class Build:
    """What the kernels of a commit do."""

    name: str
    cast_bytes: int  # a logit, in kernels between the convolution and the plugin
    read_bytes: int  # a logit, in the plugin
    waits: int  # loads of a round that are waited for one after the other
    narrow: int  # blocks an SM on Blackwell; two elsewhere
    nodes: int  # kernels and memsets of decode and NMS
    chains: float  # microseconds of dependent steps: a segment's end, ranks, the walk


BEFORE = Build("before", 6, 4, 8, 1, 7, 12 + 3 + 10 + 12)
AFTER = Build("now", 0, 2, 1, 2, 3, 10 + 3 + 10)


def logits(size: int, batch: int) -> int:
    """Return the logits of a batch of square images."""
    return batch * CHANNELS * sum((-(-size // stride)) ** 2 for stride in STRIDES)


def microseconds(build: Build, gpu: str, size: int, batch: int) -> float:
    """Return the time of decode and NMS, with what stands between them and the convolutions."""
    rate, multiprocessors = GPUS[gpu]
    count = logits(size, batch)
    blocks = build.narrow if gpu == "B200" else 2
    each = THREADS * VALUES * build.read_bytes / (build.waits * LATENCY + blocks * ISSUE)
    reading = count * build.read_bytes / min(rate, multiprocessors * blocks * each)
    return count * build.cast_bytes / rate + reading + build.nodes * LAUNCH + build.chains


def main() -> None:
    """Print the table: microseconds, and how many times that is of reading FP16 logits once."""
    print("| GPU | " + " | ".join(f"{size}, batch {batch}" for size, batch in CASES) + " |")
    print("|---|" + "---:|" * len(CASES))
    for gpu, (rate, _) in GPUS.items():
        cells = []
        for case in CASES:
            once = 2 * logits(*case) / rate
            before, now = (microseconds(build, gpu, *case) for build in (BEFORE, AFTER))
            cells.append(f"{once:.0f}; {before:.0f} → {now:.0f} ({now / once:.1f} x)")
        print(f"| {gpu} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    run(main)
