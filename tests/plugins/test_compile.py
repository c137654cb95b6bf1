"""What compilers make of the plugins: every version of TensorRT's headers, registers, spills, loads, symbols.

What is not here (headers, nvcc, a built library) skips its tests with the reason.
"""

import re
import shutil
import subprocess

import pytest

from tests.plugins.emulator.native import PLUGINS
from tests.plugins.libraries import ADAPTER, TRITON, built, cuda_headers, require_compiler, tensorrt_headers


def test_the_adapter_compiles_with_every_version_of_the_headers():
    require_compiler()
    found = tensorrt_headers()
    if not found:
        pytest.skip("needs TensorRT's headers: set TENSORRT_ROOT to one or more folders that have include/")
    for folder in found:
        command = [
            "g++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-isystem", str(folder),
            "-isystem", str(cuda_headers()), f"-I{PLUGINS / 'include'}", *map(str, ADAPTER), str(TRITON),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, f"{folder}: {done.stderr}"


@pytest.mark.parametrize("name", ["decode", "nms"])
def test_the_kernels_compile_for_all_architectures_without_warnings_and_spills(name, tmp_path):
    nvcc = shutil.which("nvcc")
    if not nvcc:
        pytest.skip("needs nvcc")
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    ours = [number for number in ("75", "80", "86", "89", "90", "100", "120") if f"compute_{number}" in known]
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in ours]
    newest = f"-gencode=arch=compute_{ours[-1]},code=compute_{ours[-1]}"
    command = [
        nvcc, "-std=c++17", "--Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror", "-Xptxas=-v",
        *targets, newest, f"-I{PLUGINS / 'include'}", "-c", str(PLUGINS / "kernels" / f"{name}.cu"),
        "-o", str(tmp_path / "out.o"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    used = [int(number) for number in re.findall(r"Used (\d+) registers", done.stderr)]
    spilled = re.findall(r"(\d+) bytes spill", done.stderr)
    assert len(used) >= len(ours) and max(used) <= 64, "two blocks of 512 threads share 65536 registers"
    assert set(spilled) == {"0"}


def test_a_thread_s_loads_of_logits_are_under_way_together(tmp_path):
    if not shutil.which("nvcc") or not shutil.which("cuobjdump"):
        pytest.skip("needs nvcc and cuobjdump")
    command = [
        "nvcc", "-std=c++17", "-gencode=arch=compute_90,code=sm_90", f"-I{PLUGINS / 'include'}", "-c",
        str(PLUGINS / "kernels" / "decode.cu"), "-o", str(tmp_path / "out.o"),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    listing = subprocess.run(
        ["cuobjdump", "-sass", tmp_path / "out.o"], capture_output=True, text=True, check=True
    )
    functions = listing.stdout.split("Function : ")[1:]
    assert len(functions) == 2
    for function in functions:
        code = [line for line in function.splitlines() if re.search(r"/\*[0-9a-f]{4,}\*/ ", line)]
        loads = [number for number, line in enumerate(code) if "LDG.E.EF.128" in line]
        together = 4 if "__half" in function.splitlines()[0] else 8  # and one where a segment ends
        assert len(loads) == together + 1 and loads[together - 1] - loads[0] == together - 1


def test_the_library_exports_the_entry_points_and_links_nothing_of_tensorrt():
    library = built("libretinaserve_plugins.so")
    if not shutil.which("nm") or not shutil.which("readelf"):
        pytest.skip("needs nm and readelf")
    symbols = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True)
    strong = {line.split()[2] for line in symbols.stdout.splitlines() if line.split()[1] == "T"}
    assert strong == {"getCreators", "setLoggerFinder"}
    needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert "nvinfer" not in needed and "cudart" not in needed
