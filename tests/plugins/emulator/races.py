"""The kernels on the race detector: concurrent blocks, every access watched, results compared with the reference.

    library = compile_detector(Path("races.so"))
    found = run_all(library, sites())      # {"": nothing, "blockSort __syncthreads 1": what shows without it, ...}

Each run is a process of its own, since a kernel without a barrier may write anywhere.
"""

import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from retinaserve.plugins import reference
from tests.plugins.emulator.native import HERE, PLUGINS, Kernels

CLAMP = float(np.log(1000 / 16))
LETTERBOX = np.array([[500, 700, 1000, 1000], [4000, 3000, 800, 900]], np.float32)
SEEDS = 3  # of the order of everything; each interrupts more or less often
SITE = re.compile(r"\b(__syncthreads|__syncthreads_or|__threadfence|atomic\w+)\(")
FUNCTION = re.compile(r"__(?:device|global)__ .*?(\w+)\((?!k)")


def compile_detector(library, kernels=PLUGINS / "kernels"):
    """Compile the kernels, instrumented, with the detector, which is not; return the library."""
    flags = (
        "-std=c++17", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off",
        "-U_FORTIFY_SOURCE", "-fPIC", '-DRETINASERVE_CUDA="cuda_with_races.h"', f"-I{PLUGINS / 'include'}",
        f"-I{HERE}", "-c", "-x", "c++",
    )  # fmt: skip
    sources = [kernels / f"{name}.cu" for name in ("decode", "nms")]
    sources += [HERE / f"{name}.cpp" for name in ("kernels", "race_detector", "race_scheduler")]
    objects = [library.with_name(f"{source.stem}.o") for source in sources]
    for source, target in zip(sources, objects, strict=True):
        own = "-fsanitize=thread" if source.suffix == ".cu" else "-O2"
        subprocess.run(["g++", *flags, own, str(source), "-o", str(target)], check=True)
    subprocess.run(["g++", "-shared", *map(str, objects), "-o", str(library)], check=True)
    return library


def let_be_removed(kernels, statements):
    """Let statements {name: (file, text, which of several)} be taken away as barriers are; return their places."""
    found = {}
    for name, (file, text, which) in statements.items():
        lines = (kernels / file).read_text().splitlines(keepends=True)
        place = [number for number, line in enumerate(lines) if text in line][which]
        lines[place] = lines[place].replace(text, f"if (!detector::isRemoved(__FILE__, __LINE__)) {text}")
        (kernels / file).write_text("".join(lines))
        found[name] = file, place + 1
    return found


def sites():
    """Return {name: (file, line)} of every barrier, fence and atomic of the kernels."""
    found = {}
    for path in sorted((PLUGINS / "kernels").glob("*.cuh")):
        function, seen = "", {}
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if opened := FUNCTION.match(line):
                function = opened[1]
            for word in SITE.findall(line.split("//")[0]):
                seen[function, word] = seen.get((function, word), 0) + 1
                found[f"{function} {word} {seen[function, word]}"] = path.name, number
    return found


class Detector(Kernels):
    """The instrumented library."""

    def __init__(self, path):
        super().__init__(path)
        self.library.detectorReport.restype = ctypes.c_char_p

    def configure(self, seed):
        self.library.detectorConfigure(seed, (8, 3, 32)[seed % 3], seed % 2)

    def report(self):
        """Return what was found so far, in lines."""
        return self.library.detectorReport().decode()


def cases():
    """Return (kind, name, arguments, settings): one block and several, ties, pruning; runs and none."""
    rng = np.random.default_rng(5)

    def case(name, values, channels, height, width, dtype, topk, *, threshold=-2.0, batch=1, levels=1):
        logits, deltas = [], []
        for _ in range(levels):
            one = np.asarray(values(channels * height * width), dtype)
            images = [np.roll(one, 7 * image) for image in range(batch)]
            logits.append(np.stack(images).reshape(batch, channels, height, width))
            deltas.append(rng.normal(0, 0.3, (batch, 4, height, width)).astype(dtype))
        settings = {
            "anchors": np.tile(np.float32([[0, 0, 8, 8]]), (levels, 1, 1)), "strides": (8,) * levels,
            "threshold_logit": threshold, "topk": topk, "delta_clamp": CLAMP,
        }  # fmt: skip
        return "decode", name, (logits, deltas, np.full((batch, 4), 9999, np.float32)), settings

    def few(count):
        return np.where(rng.random(count) < 0.002, rng.normal(1, 1, count), -9)

    found = [
        case("three values", lambda n: rng.integers(0, 3, n), 7, 90, 91, np.float16, 1000),
        case("an untrained network", lambda n: rng.normal(0, 3, n), 5, 90, 91, np.float32, 300),
        case("ever better", lambda n: np.arange(n) / n, 5, 90, 91, np.float32, 100),
        case("few", few, 7, 90, 91, np.float16, 1000, batch=2, levels=2),
        case(
            "one block", lambda n: rng.normal(0, 1, n), 3, 9, 11, np.float32, 50, threshold=-1.0, batch=2, levels=3
        ),
    ]
    for count, places, classes, most, runs in (
        (90, 30, 3, 100, 1), (300, 40, 3, 100, 2), (700, 300, 1, 600, 5), (600, 200, 1, 300, 0),
    ):  # fmt: skip
        rng = np.random.default_rng(count)
        centres = rng.uniform(0, 900, (2, places, 2))
        middle = np.take_along_axis(centres, rng.integers(0, places, (2, count, 1)), axis=1)
        middle = middle + rng.normal(0, 1.5, (2, count, 2))
        half = 20 + rng.uniform(0, 2, (2, count, 2))
        boxes = np.concatenate((middle - half, middle + half), axis=2).clip(0, 1000).astype(np.float32)
        logits = rng.normal(0, 2, (2, count)).astype(np.float32)
        logits[rng.random((2, count)) < 0.1] = -np.inf
        logits[0] = logits[0].round()
        if runs:  # best first each, as levels are
            logits = -np.sort(-logits.reshape(2, runs, -1)).reshape(2, count)
        labels = rng.integers(0, classes, (2, count)).astype(np.int32)
        settings = {"iou": 0.5, "max_detections": most}
        found.append(("nms", f"NMS of {count}", (logits, boxes, labels, LETTERBOX), settings))
    return found


def detect(detector, seeds, kinds=("decode", "nms")):
    """Run the cases until something is found; return it as text, or nothing."""
    for seed in seeds:
        for kind, name, arguments, settings in cases():
            if kind not in kinds:
                continue
            detector.configure(seed)
            detector.keeps = seed % 2 == 0
            try:
                found = getattr(detector, kind)(*arguments, **settings)
            except RuntimeError as error:
                return f"{name}, seed {seed}: {detector.report() or error}"
            expected = getattr(reference, kind)(*arguments, **settings)
            for place, (one, other) in enumerate(zip(found, expected, strict=True)):
                rounded = place == (1 if kind == "decode" else 2)  # exp() differs in its last bit
                if not (np.allclose(one, other, rtol=0, atol=1e-3) if rounded else np.array_equal(one, other)):
                    return f"{name}, seed {seed}: another result"
    return ""


def run_all(library, removals, seeds=SEEDS):
    """Return what is found by name: under "" without a removal, else without the one of that name."""
    command = [sys.executable, "-m", "tests.plugins.emulator.races", str(library), str(seeds)]
    root = PLUGINS.parent
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}"}
    done = subprocess.run(command, input=json.dumps(removals), stdout=subprocess.PIPE, text=True, env=environment)
    done.check_returncode()
    return json.loads(done.stdout)


def main():
    """Fork a process for every removal of stdin, two at a time, and print what they find as JSON."""
    detector, seeds = Detector(Path(sys.argv[1])), range(int(sys.argv[2]))
    jobs = {"": ("", 0), **json.load(sys.stdin)}
    running, found = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (file, line)) in enumerate(jobs.items()):
            told = Path(folder, str(number))
            child = os.fork()
            if not child:
                detector.library.detectorRemove(file.encode(), line)
                kinds = {"decode.cuh": ["decode"], "nms.cuh": ["nms"]}.get(file, ["decode", "nms"])
                told.write_text(detect(detector, seeds, kinds))
                os._exit(0)
            running[child] = name, told
            while len(running) == 2 or (running and number + 1 == len(jobs)):
                child, status = os.wait()
                name, told = running.pop(child)
                found[name] = told.read_text() if not status else f"it ended with status {status}"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
