"""The kernels' memory model: no race in any order, and whatever prevents one is missed when it is gone."""

import shutil

import pytest

from tests.plugins.emulator.native import PLUGINS
from tests.plugins.emulator.races import compile_detector, let_be_removed, run_all, sites
from tests.plugins.libraries import require_compiler

SITES = sites()
# What prevents one beside barriers, fences and atomics: (file, what stands there, which of several).
STATEMENTS = {
    "sums in one buffer": ("primitives.cuh", "from ^= 1;", 0),
    "who is out not cleared at the start": ("nms.cuh", "shared.out[threadIdx.x] = 0;", 0),
    "who is out not cleared for the next chunk": ("nms.cuh", "shared.out[threadIdx.x] = 0;", 1),
    "runs not cleared": ("nms.cuh", "shared.runs = 0;", 0),
    "empty slots not counted from zero": ("nms.cuh", "shared.valid = 0;", 0),
    "histogram not cleared": ("primitives.cuh", "buffer.histogram[bin] = 0;", 0),
    "count not cleared for the gathering": ("decode.cuh", "shared.buffer.count = 0;", 0),
    "bound not cleared for the next call": ("decode.cuh", "segment->bound = 0;", 0),
    "count not cleared for the next call": ("decode.cuh", "segment->count = 0;", 0),
    "count not cleared at the start": ("decode.cuh", "shared.buffer.count = 0;", 1),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    require_compiler()
    kernels = shutil.copytree(PLUGINS / "kernels", tmp_path_factory.mktemp("races") / "kernels")
    places = let_be_removed(kernels, STATEMENTS)
    return run_all(compile_detector(kernels.with_name("races.so"), kernels), SITES | places)


def test_the_kernels_do_not_race(found):
    assert found[""] == ""


@pytest.mark.parametrize("site", [*SITES, *STATEMENTS])
def test_what_prevents_a_race_is_missed_when_it_is_gone(found, site):
    assert found[site]
