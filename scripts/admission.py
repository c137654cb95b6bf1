"""What the GPU profile's admission costs: its definition alone, and its step in the embedded Triton.

    cost = definition_cost(pictures)     # microseconds of one core a picture
    step_cost(pictures)                  # those of the step's process, Triton's python backend included

Processor time, not waiting: it hardly changes when the machine is busy with other things.
"""

import io
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from retinaserve.build_tools.preprocess import admit
from retinaserve.build_tools.repository.builder import ADMISSION_PACKAGE
from retinaserve.build_tools.repository.configs import TEMPLATES, read_config, write_config
from retinaserve.scripts.server.triton import ServerOptions, TritonServer
from retinaserve.training.spec import ADMISSION, IMAGE_BYTES

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class StepCost:
    """The step under load, a picture."""

    microseconds: float  # of the step's own process
    server_microseconds: float  # of tritonserver: receiving, queueing, answering
    mean_batch: float


def draw_jpegs(count: int = 64, kilobytes: int = 100) -> list[bytes]:
    """Draw photo-like JPEGs of about this length: noise at several scales, which compresses as photos do."""
    side = round((kilobytes * 1000 / 0.238) ** 0.5)
    pictures = []
    for seed in range(count):
        random = np.random.default_rng(seed)
        canvas = Image.new("RGB", (side, side * 3 // 4))
        for scale in (64, 16, 4, 1):
            layer = random.integers(0, 255, (max(1, side * 3 // 4 // scale), side // scale, 3)).astype(np.uint8)
            spread = Image.fromarray(layer).resize(canvas.size, Image.Resampling.BICUBIC)
            canvas = Image.blend(canvas, spread, 0.35 if scale > 1 else 0.12)
        buffer = io.BytesIO()
        canvas.save(buffer, "JPEG", quality=85)
        pictures.append(buffer.getvalue())
    return pictures


def definition_cost(pictures: Sequence[bytes], *, rounds: int = 20) -> float:
    """Return the processor time of one `admit`, in microseconds: the best of several rounds over the pictures."""
    views = [memoryview(data) for data in pictures]
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        for view in views:
            admit(view)
        best = min(best, time.process_time() - start)
    return best / len(views) * 1e6


def step_cost(pictures: Sequence[bytes], *, requests: int = 6000, concurrency: int = 16) -> StepCost:
    """Serve the step alone, one instance of it, ask it `requests` times, and return what a picture costs."""
    with _repository() as repository, TritonServer(repository, ServerOptions("127.0.0.1", 0, 0, 0)) as server:
        server.wait_until_ready(60)
        (step,) = _children(server.process.pid)
        before = _seconds(step), _seconds(server.process.pid)
        executions = _load(server.grpc_url, pictures, requests, concurrency)
        after = _seconds(step), _seconds(server.process.pid)
    own, whole = ((end - start) / requests * 1e6 for start, end in zip(before, after, strict=True))
    return StepCost(own, whole, requests / executions)


@contextmanager
def _repository() -> Iterator[Path]:
    """Give a repository of the admission model alone."""
    with tempfile.TemporaryDirectory(prefix="retinaserve-") as scratch:
        model = Path(scratch) / ADMISSION
        shutil.copytree(TEMPLATES / "gpu" / ADMISSION, model, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ADMISSION_PACKAGE, model / "1" / ADMISSION_PACKAGE.name)
        config = read_config(model / "config.pbtxt")
        config.instance_group[0].count = 1
        del config.model_warmup[:]  # its picture comes with a repository's build
        write_config(model / "config.pbtxt", config)
        yield Path(scratch)


def _load(url: str, pictures: Sequence[bytes], requests: int, concurrency: int) -> int:
    """Ask for `requests` pictures in turn, so many at a time; return how many executions that took."""
    import tritonclient.grpc as grpc

    tensors = []
    for data in pictures:
        tensor = grpc.InferInput(IMAGE_BYTES, [1, len(data)], "UINT8")
        tensor.set_data_from_numpy(np.frombuffer(data, np.uint8)[None])
        tensors.append([tensor])

    def ask(first: int) -> None:
        with grpc.InferenceServerClient(url) as client:
            for number in range(first, requests, concurrency):
                client.infer(ADMISSION, tensors[number % len(tensors)])

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with grpc.InferenceServerClient(url) as client:
        return int(client.get_inference_statistics(ADMISSION).model_stats[0].execution_count)


def _seconds(process: int) -> float:
    """Return the processor time a process has used (user and system, proc(5))."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _children(parent: int) -> list[int]:
    """Return the processes that one has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[1]) == parent:
            found.append(int(path.parent.name))
    return found
