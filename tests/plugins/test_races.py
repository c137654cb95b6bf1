"""The kernels' memory model: no race in any order, and whatever prevents one is missed when it is gone."""

import shutil

import pytest

from tests.plugins.emulator.native import PLUGINS
from tests.plugins.emulator.races import DETECTOR, compile_detector, run_all, sites
from tests.plugins.libraries import require_compiler

SITES = sites()
# What no single line takes away: (file, what stands there, what stands there instead, which of several).
CHANGES = {
    "sums in one buffer": ("primitives.cuh", "from ^= 1;", "", 0),
    "who is out not cleared at the start": ("nms.cuh", "shared.out[threadIdx.x] = 0;", "", 0),
    "who is out not cleared for the next chunk": ("nms.cuh", "shared.out[threadIdx.x] = 0;", "", 1),
    "runs not cleared": ("nms.cuh", "shared.runs = 0;", "", 0),
    "empty slots not counted from zero": ("nms.cuh", "shared.valid = 0;", "", 0),
    "histogram not cleared": ("primitives.cuh", "buffer.histogram[bin] = 0;", "", 0),
    "count not cleared for the gathering": ("decode.cuh", "shared.buffer.count = 0;", "", 0),
    "bound not cleared for the next call": ("decode.cuh", "segment->bound = 0;", "", 0),
    "count not cleared for the next call": ("decode.cuh", "segment->count = 0;", "", 0),
    "done not cleared for the next call": ("decode.cuh", "atomicExch(&segment->done, 0U);", "", 0),
    "count not cleared at the start": ("decode.cuh", "shared.buffer.count = 0;", "", 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    require_compiler()
    return compile_detector(tmp_path_factory.mktemp("races") / "races.so")


@pytest.fixture(scope="module")
def found(library):
    return run_all(library, SITES)


def test_the_kernels_do_not_race(found):
    assert found[""] == ""


@pytest.mark.parametrize("site", SITES)
def test_a_barrier_fence_or_atomic_that_is_gone_is_noticed(found, site):
    assert found[site]


@pytest.mark.parametrize("change", CHANGES)
def test_another_change_is_noticed(library, tmp_path, change):
    file, before, after, which = CHANGES[change]
    kernels = shutil.copytree(PLUGINS / "kernels", tmp_path / "kernels")
    parts = (kernels / file).read_text().split(before)
    assert len(parts) > which + 1, f"{file} has no {before!r}"
    (kernels / file).write_text(before.join(parts[: which + 1]) + after + before.join(parts[which + 1 :]))
    unchanged = "decode" if file == "nms.cuh" else "nms"
    for name in (unchanged, "kernels", *DETECTOR):
        shutil.copy(library.with_name(f"{name}.o"), tmp_path)
    assert run_all(compile_detector(tmp_path / "races.so", kernels), {})[""]
