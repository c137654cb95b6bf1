"""What a day with a GPU is for, in the order of what it proves, a limit for each step, one report for docs.

    python3 scripts/lab/gpu_day.py kernels --output runs/gpu        # ten minutes; nvcc, cmake, numpy, pytest
    python3 scripts/lab/gpu_day.py server model.pth --images DIR --annotations FILE --output runs/gpu

The first needs no TensorRT; torch and torchvision, compute-sanitizer and ncu are used where they are. The second
is for a machine with TensorRT, Triton and this project's extras. The report is written anew after every step, so
that an interrupted day leaves what it has shown. Python alone runs it: a machine with a GPU need not have all
packages.
"""

import argparse
import ctypes
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CUdevice_attribute of cuda.h
PASSED, FAILED, LATE, MISSING = "passed", "failed", "out of time", "left out"
PID = "triton.pid"
TAIL = 4000  # characters of a step's output that the report keeps
# No conftest: it imports packages that only the whole project needs.
PYTEST = (sys.executable, "-m", "pytest", "--noconftest", "-W", "default", "--timeout=0", "-p", "no:cacheprovider",
          "-q", "-m", "gpu", "tests/plugins")  # fmt: skip
# Sanitizers slow kernels down tenfold: cases of several blocks and chunks, and a tenth of the random ones.
FEW = "several_blocks or chunks_of_nms or best_first or (random_problems and gpu-3)"


@dataclass(frozen=True)
class Step:
    """A command, what it proves, and the seconds it may take."""

    name: str
    proves: str
    seconds: int
    command: Sequence[str | Path]
    needs: str = ""  # a program; without it the step is left out


@dataclass
class Done:
    """What became of a step."""

    step: Step
    outcome: str
    seconds: float
    output: str


@dataclass
class Report:
    """What the day has shown, as Markdown."""

    path: Path
    title: str
    facts: dict[str, str]
    done: list[Done] = field(default_factory=list)

    def add(self, done: Done) -> None:
        """Add a step, and write the report anew."""
        self.done.append(done)
        head = [
            f"# {self.title}",
            "",
            "| | |",
            "|---|---|",
            *(f"| {k} | {v} |" for k, v in self.facts.items()),
            "",
        ]
        head += ["| step | proves | outcome | seconds |", "|---|---|---|---:|"]
        head += [f"| {d.step.name} | {d.step.proves} | {d.outcome} | {d.seconds:.0f} |" for d in self.done]
        parts = ["\n".join(head)]
        for each in self.done:
            command = " ".join("..." if "\n" in str(word) else str(word) for word in each.step.command)
            output = each.output[-TAIL:].strip()
            parts.append(f"\n## {each.step.name}\n\n`{command}`\n\n```\n{output}\n```")
        self.path.write_text("\n".join(parts) + "\n")

    @property
    def is_good(self) -> bool:
        """Whether nothing failed or took too long."""
        return all(each.outcome in (PASSED, MISSING) for each in self.done)


def run(step: Step, environment: dict[str, str]) -> Done:
    """Run a step within its time; its output is kept whatever becomes of it."""
    if step.needs and not shutil.which(step.needs):
        return Done(step, MISSING, 0, f"there is no {step.needs}")
    started = time.monotonic()
    command = [str(word) for word in step.command]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        output, _ = process.communicate(timeout=step.seconds)
        outcome = PASSED if process.returncode == 0 else FAILED
    except subprocess.TimeoutExpired:
        process.terminate()
        output, _ = process.communicate()
        outcome = LATE
    return Done(step, outcome, time.monotonic() - started, output)


def follow(steps: Iterator[Step], report: Report, environment: dict[str, str]) -> bool:
    """Run steps one after another; what the first shows is asked of all. Return whether all is well."""
    for step in steps:
        print(f"{step.name} (up to {step.seconds} s): {step.proves} ...", flush=True)
        done = run(step, environment)
        report.add(done)
        print(f"  {done.outcome}, {done.seconds:.0f} s", flush=True)
        if done.outcome == FAILED and step.name in ("build", "first call"):
            print(done.output[-TAIL:])
            break
    print(f"{report.path} has it all")
    return report.is_good


def gpu() -> tuple[str, str, str]:
    """Return the first GPU's name, compute capability and driver's CUDA. Raises OSError where there is none."""
    driver = ctypes.CDLL("libcuda.so.1")
    if code := driver.cuInit(0):
        raise OSError(f"cuInit failed with error {code}")
    name, version = ctypes.create_string_buffer(256), ctypes.c_int()
    driver.cuDeviceGetName(name, len(name), 0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    parts = []
    for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, 0)
        parts.append(str(value.value))
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return name.value.decode(errors="replace"), ".".join(parts), cuda


def facts(capability: str) -> dict[str, str]:
    """Return date, commit, GPU and tools, as far as they are known."""
    try:
        name, found, cuda = gpu()
        shown = {"GPU": f"{name}, compute capability {found}", "driver": f"CUDA {cuda}"}
    except OSError as error:
        shown = {"GPU": f"none ({error})" + (f"; built for {capability}" if capability else "")}
    commit = said("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD") or "unknown"
    nvcc = [line for line in said("nvcc", "--version").splitlines() if "release " in line]
    shown |= {"date": time.strftime("%Y-%m-%d"), "commit": commit, "host": platform.platform()}
    return shown | {"nvcc": nvcc[0].split("release ")[1] if nvcc else "none"}


def said(*command: str) -> str:
    """Return what a program prints; nothing where there is none."""
    if not shutil.which(command[0]):
        return ""
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


FIRST_CALL = """
import sys, numpy as np
from tests.plugins.emulator.native import Kernels, Memory, NmsProblem
kernels = Kernels(sys.argv[1])
print("scratch of NMS:", kernels.scratch_bytes(NmsProblem(8, 5000, 100, 0.5)), "bytes")
Memory(kernels, np.zeros(256, np.uint8)).free()
print("GPU memory was allocated, written and freed")
"""


def kernel_steps(build: Path, capability: str, output: Path) -> Iterator[Step]:
    """Give the steps that need no TensorRT: ten minutes, what proves most first."""
    library = build / "libretinaserve_kernels.so"
    architecture = capability.replace(".", "")
    configure = f"cmake -S plugins -B {build} -DCMAKE_CUDA_ARCHITECTURES={architecture}"
    script = f"{configure} && cmake --build {build} --parallel"
    yield Step("build", "the kernels compile here", 60, ["sh", "-c", script], "nvcc")
    yield Step("first call", "the library finds a GPU", 10, [sys.executable, "-c", FIRST_CALL, library])
    yield Step("tests", "results equal the reference's", 80, [*PYTEST, "-k", "not 32_bits"])
    bench = (sys.executable, "-m", "tests.plugins.emulator.bench", "--library", library)
    yield Step("bench", "time over reading the logits once, and torchvision", 100,
               [*bench, "--repeats", "20", "--json", output / "bench.json"])  # fmt: skip
    sanitize = ("compute-sanitizer", "--target-processes", "all", "--error-exitcode", "9", "--tool")
    for tool, proves, seconds in (
        ("memcheck", "no access beyond an array", 40), ("racecheck", "no hazard in shared memory", 40),
        ("initcheck", "nothing is read unwritten", 30), ("synccheck", "no barrier is skipped", 30),
    ):  # fmt: skip
        yield Step(tool, proves, seconds, [*sanitize, tool, *PYTEST, "-k", FEW], "compute-sanitizer")
    yield Step("stress", "four streams, every launch like the first", 60,
               [sys.executable, "-m", "tests.plugins.emulator.stress", library, "--seconds", "40"])  # fmt: skip
    kernels = "regex:decodeKernel|rankKernel|keepKernel"
    yield Step("ncu", "what the kernels wait for", 60,
               ["ncu", "--kernel-name", kernels, "--launch-count", "6", "--set", "detailed", *bench,
                "--sizes", "1280", "--batches", "8", "--repeats", "1"], "ncu")  # fmt: skip
    yield Step("64-bit offsets", "a batch of more than 2^32 logits; 9 GB", 60, [*PYTEST, "-k", "32_bits"])


NEEDED = """
import sys
from pathlib import Path
try:
    from retinaserve.build_tools.engine.builder import load_tensorrt
    from retinaserve.build_tools.engine.manifest import find_gpus
    from retinaserve.build_tools.engine.tensorrt import load_plugins
    from retinaserve.training.errors import UserError
except ImportError as error:
    sys.exit(f"{sys.executable}: {error}; this project is needed with its packages: pip install '.[train,gpu]'")
problems = [] if find_gpus() else ["there is no GPU here, or no driver for it"]
try:
    trt = load_tensorrt()
    load_plugins(trt, Path(sys.argv[1]))
    print(f"TensorRT {trt.__version__} knows the plugins of {sys.argv[1]}")
except UserError as error:
    problems.append(f"{error.message}: {error.hint}")
print("\\n".join([*problems, "retinaserve doctor tells more"] if problems else ["nothing is missing"]))
sys.exit(bool(problems))
"""


def server_steps(asked: argparse.Namespace, output: Path) -> Iterator[Step]:
    """Give the steps of a machine with TensorRT and Triton: from a checkpoint to figures of a live server."""
    first, quantized, repository = output / "fp16.plan", output / "int8.plan", output / "repository"
    retinaserve = (sys.executable, "-m", "retinaserve")
    export = (*retinaserve, "export", asked.checkpoint)
    verify = (*retinaserve, "verify", asked.checkpoint)
    images, plugins = ("--images", asked.images), ("--plugins", asked.plugins)
    labelled = (*images, "--annotations", asked.annotations)
    first_call = [sys.executable, "-c", NEEDED, asked.plugins]
    yield Step("first call", "TensorRT, the plugins and a GPU are here", 60, first_call)
    yield Step("doctor", "what is installed fits together", 60, [*retinaserve, "doctor"])
    fp16 = [*export, first, "--precision", "fp16", *plugins]
    yield Step("export FP16", "TensorRT takes the graph and the plugins", 900, fp16)
    int8 = [*export, quantized, "--precision", "int8", "--calibration-images", asked.images, *plugins]
    yield Step("export INT8", "the same, quantized", 1200, int8)
    plans = [*verify, first, quantized, *labelled, *plugins]
    yield Step("verify plans", "plans answer as the checkpoint does", 600, plans)
    build = [*retinaserve, "build", first, "--profile", "gpu", *plugins, "--output", repository]
    yield Step("build", "a repository for this machine", 120, build)
    start = f"""
        MODELS={repository} PLUGINS={asked.plugins} scripts/deploy/container/start.sh > {output}/triton.log 2>&1 &
        echo $! > {output}/{PID}
        for i in $(seq 120); do curl -sf localhost:8000/v2/health/ready && exit 0; sleep 1; done
        tail -n 40 {output}/triton.log; exit 1"""
    yield Step("serve", "Triton loads all four models", 150, ["sh", "-c", start], "tritonserver")
    live = ("--server", "localhost:8001")
    answers = [*verify, *live, *labelled, "--precision", "fp16"]
    yield Step("verify the server", "the server answers as the checkpoint does", 600, answers, "tritonserver")
    bench = [*retinaserve, "bench", *live, *images, "--concurrency", "1,8,32,64", "--json", output / "server.json"]
    yield Step("bench", "images a second, latency, where the time goes", 300, bench, "tritonserver")
    eval_words = [*retinaserve, "eval", *live, *labelled]
    yield Step("eval", "AP through the server", 600, eval_words, "tritonserver")


def stop(pid: Path) -> None:
    """End the server that a step has started, if it did."""
    if pid.is_file():
        os.kill(int(pid.read_text()), signal.SIGTERM)
        pid.unlink()


def main(words: Sequence[str] | None = None) -> int:
    """Run a day's steps and write report.md; 0 where all that could run has passed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    days = parser.add_subparsers(dest="day", required=True)
    kernels, server = days.add_parser("kernels"), days.add_parser("server")
    for each in (kernels, server):
        each.add_argument("--output", type=Path, default=Path("runs/gpu"))
    kernels.add_argument(
        "--architecture", help="Compute capability to build for where there is no GPU.", default="9.0"
    )
    server.add_argument("checkpoint", type=Path)
    server.add_argument("--images", type=Path, required=True)
    server.add_argument("--annotations", type=Path, required=True)
    server.add_argument("--plugins", type=Path, default=Path("build/plugins/libretinaserve_plugins.so"))
    asked = parser.parse_args(words)
    output = asked.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    try:
        capability = gpu()[1]
    except OSError:
        capability = getattr(asked, "architecture", "")
    build = output / "build"
    environment = {**os.environ, "RETINASERVE_PLUGINS_BUILD": str(build), "PYTHONDONTWRITEBYTECODE": "1",
                   "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}  # fmt: skip
    report = Report(output / "report.md", f"A day with a GPU: {asked.day}", facts(capability))
    steps = kernel_steps(build, capability, output) if asked.day == "kernels" else server_steps(asked, output)
    try:
        return 0 if follow(steps, report, environment) else 1
    finally:
        stop(output / PID)


if __name__ == "__main__":
    sys.exit(main())
