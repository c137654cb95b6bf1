"""Engines by NVIDIA's own builder: TensorRT for RTX, which needs no GPU. What needs one says so and skips."""

import os
import shutil
import signal
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from retinaserve.build_tools.engine import tensorrt
from retinaserve.build_tools.engine.builder import (
    RTX,
    EngineOptions,
    build_engine,
    build_plan,
    load_tensorrt,
)
from retinaserve.build_tools.engine.manifest import Driver, check_plan, find_gpus, read_manifest, this_target
from retinaserve.build_tools.engine.tensorrt import load_plugins, message_log, progress_monitor
from retinaserve.build_tools.graph.detection import DECODE, NMS
from retinaserve.build_tools.graph.float16 import to_float16
from retinaserve.build_tools.graph.graft import graft, save
from retinaserve.build_tools.quantize.qdq import layers_of, quantize, tensors_of
from retinaserve.scripts.lab.compile_check import TARGETS, compilable, compile_check, copied_heads
from retinaserve.training.errors import UserError
from retinaserve.training.files import sha256
from tests.disk import files_no_larger_than
from tests.toys import toy_spec

L4 = EngineOptions((1, 2, 4), compute_capability="8.9")
TOY_CONVOLUTIONS, TOY_OUTPUTS = 48, 10  # of which the second are the heads' last, which are never quantized


@pytest.fixture(scope="module")
def trt() -> Any:
    return load_tensorrt(RTX)


@pytest.fixture(scope="module")
def flavours(toy_onnx: Path) -> dict[str, Path]:
    """The toy detector in every precision, complete with decode and NMS."""
    spec, heads = toy_spec(), onnx.load(toy_onnx.parent / "heads.onnx")
    layers = layers_of(heads, spec)
    int8 = quantize(heads, spec, dict.fromkeys(tensors_of(heads, layers), 4.0), layers)
    models = {"fp32": heads, "fp16": to_float16(heads)[0], "int8": int8, "int8 in fp16": to_float16(int8)[0]}
    paths = {name: toy_onnx.parent / f"{name.replace(' ', '_')}.onnx" for name in models}
    for name, model in models.items():
        save(graft(model), paths[name])
    return paths


@pytest.fixture(scope="module")
def for_plugins(toy_onnx: Path) -> dict[str, Path]:
    """The toy detector with our plugins, in half precision and quantized."""
    spec, heads = toy_spec(), onnx.load(toy_onnx.parent / "heads.onnx")
    layers = layers_of(heads, spec)
    int8 = quantize(heads, spec, dict.fromkeys(tensors_of(heads, layers), 4.0), layers)
    paths = {name: toy_onnx.parent / f"{name.replace(' ', '_')}_plugins.onnx" for name in ("fp16", "int8 in fp16")}
    for path, model in zip(paths.values(), (heads, int8), strict=True):
        save(graft(to_float16(model)[0], flavour="tensorrt"), path)
    return paths


@pytest.fixture(scope="module")
def candidates(toy_onnx: Path) -> Path:
    """The toy detector up to the candidates, which this builder takes as it is."""
    path = toy_onnx.parent / "candidates.onnx"
    save(graft(toy_onnx.parent / "heads.onnx", until="candidates"), path)
    return path


@pytest.fixture(scope="module")
def with_plugins(toy_onnx: Path) -> Path:
    path = toy_onnx.parent / "plugins.onnx"
    save(graft(toy_onnx.parent / "heads.onnx", flavour="tensorrt"), path)
    return path


@pytest.mark.parametrize(
    ("name", "inner", "outer"),
    [
        ("fp32", "fp32", "fp32"),
        ("fp16", "fp16", "fp16"),
        ("int8", "int8", "fp32"),
        ("int8 in fp16", "int8", "fp16"),
    ],
)
def test_every_precision_compiles_for_every_target(
    flavours: dict[str, Path], name: str, inner: str, outer: str
) -> None:
    stated = {outer: TOY_OUTPUTS}
    stated[inner] = stated.get(inner, 0) + TOY_CONVOLUTIONS - TOY_OUTPUTS
    for compiled in compile_check([flavours[name]], TARGETS, batch=(1, 2, 4)):
        assert compiled.report and not compiled.problem
        assert compiled.cut == "NonMaxSuppression" and compiled.engine_bytes > 100_000
        assert compiled.report.asked == stated
        if compiled.compute_capability == "7.5" and inner == "int8":  # this builder has no INT8 for Turing
            assert compiled.report.convolutions == {outer: TOY_CONVOLUTIONS}
            assert len(compiled.report.fallen) == TOY_CONVOLUTIONS - TOY_OUTPUTS
        else:
            assert compiled.report.convolutions == stated and not compiled.report.fallen


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["fp16", "int8 in fp16"])
def test_the_heads_convolutions_write_what_the_plugin_reads(
    for_plugins: dict[str, Path], name: str, target: str
) -> None:
    model, cut = compilable(for_plugins[name])
    assert cut == DECODE and len(model.graph.output) == TOY_OUTPUTS
    assert {value.type.tensor_type.elem_type for value in model.graph.output} == {onnx.TensorProto.FLOAT16}
    assert copied_heads(for_plugins[name], target, (1, 2, 4)) == ()


def test_a_graph_of_plugins_is_compiled_up_to_them(with_plugins: Path) -> None:
    model, cut = compilable(with_plugins)
    assert cut == "RetinaNetDecode"
    assert {value.name for value in model.graph.output} == {
        name for pair in toy_spec().head_names for name in pair
    }
    (compiled,) = compile_check([with_plugins], ["8.9"])
    assert compiled.report and not compiled.problem


def test_what_the_builder_refuses_is_told_in_its_words(trt: Any, toy_onnx: Path) -> None:
    with pytest.raises(UserError, match=r"builder refuses it: .*NonMaxSuppression.* has no runners") as caught:
        build_engine(trt, toy_onnx, L4)
    assert "_src" not in caught.value.message and caught.value.code == 3


def test_what_the_parser_refuses_is_told_with_the_node(trt: Any, candidates: Path, tmp_path: Path) -> None:
    model = onnx.load(candidates)
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type = "Sine"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UserError, match=rf"parser refuses node '{node.name}' \(Sine\)"):
        build_engine(trt, tmp_path / "model.onnx", L4)


def static(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    del model.graph.value_info[:]


def nameless(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(static, "'image' has a fixed batch of 2, batches of 1 to 4 are asked for"), (nameless, "in its metadata")],
)
def test_graphs_that_can_t_be_built(trt: Any, candidates: Path, tmp_path: Path, spoil: Any, message: str) -> None:
    model = onnx.load(candidates)
    spoil(model)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UserError, match=message) as caught:
        build_engine(trt, tmp_path / "model.onnx", L4)
    assert caught.value.code == 3


def test_plugins_are_asked_for_by_name(trt: Any, with_plugins: Path) -> None:
    with pytest.raises(UserError, match="RetinaNetDecode and RetinaNetNMS, TensorRT for RTX takes none"):
        build_engine(trt, with_plugins, L4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "no such plugin library", id="missing"),
        pytest.param(b"", "does not load: .*file too short", id="empty"),
        pytest.param(b"no library" * 99, "does not load: .*invalid ELF header", id="of another kind"),
    ],
)
def test_a_plugin_library_that_does_not_load(
    trt: Any, candidates: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    library = tmp_path / "libplugins.so"
    if content is not None:
        library.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        build_engine(trt, candidates, replace(L4, plugins=library))
    assert caught.value.code == 3


def test_a_library_without_our_plugins(trt: Any, candidates: Path) -> None:
    (libm,) = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libm.so" in line}
    with pytest.raises(UserError, match=r"is of no use to TensorRT .*: .*getCreators"):
        build_engine(trt, candidates, replace(L4, plugins=Path(libm)))


def test_our_plugins_are_known_to_what_builds_a_plan_and_to_what_reads_it_back(
    trt: Any, candidates: Path, tmp_path: Path
) -> None:
    from tests.plugins.libraries import plugins_on  # skips without a compiler or TensorRT's headers

    library = plugins_on("cpu")
    build_engine(trt, candidates, replace(L4, plugins=library))
    load_plugins(trt, library)  # a second plan of the same process
    log = message_log(trt)
    for made in (trt.Builder(log), trt.Runtime(log)):
        registry = made.get_plugin_registry()
        assert all(registry.get_creator(name, "1", "") is not None for name in (DECODE, NMS))
    other = tmp_path / "other.so"
    other.write_bytes(library.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"other\.so: this process has loaded another one already"):
        load_plugins(trt, other)


@pytest.mark.filterwarnings("ignore:.*Timing cache:DeprecationWarning")
@pytest.mark.parametrize("before", [None, b"", b"garbage"])
def test_a_timing_cache_is_read_and_written(
    trt: Any, candidates: Path, tmp_path: Path, before: bytes | None
) -> None:
    cache = tmp_path / "new" / "timings"
    if before is not None:
        cache.parent.mkdir()
        cache.write_bytes(before)
    build_engine(trt, candidates, replace(L4, timing_cache=cache))
    assert cache.stat().st_size > 0 and cache.read_bytes() != before
    assert [path.name for path in cache.parent.iterdir()] == ["timings"]


def test_progress_only_grows_and_ends(trt: Any, candidates: Path) -> None:
    shares = []
    build_engine(trt, candidates, L4, progress=lambda share, doing: shares.append(share))
    assert len(shares) > 50 and shares == sorted(shares) and shares[-1] == 1


def test_nested_phases_add_up(trt: Any) -> None:
    shares: list[float] = []
    monitor = progress_monitor(trt, lambda share, doing: shares.append(share))
    monitor.phase_start("build", None, 2)
    monitor.step_complete("build", 0)
    monitor.phase_start("time", "build", 4)
    monitor.step_complete("time", 0)
    assert shares == [0, 0.5, 0.5, 0.625]  # by hand: (1 + 1/4) / 2
    monitor.phase_finish("time")
    monitor.phase_finish("build")
    assert shares[-1] == 1


def test_ctrl_c_stops_a_build(trt: Any, candidates: Path, tmp_path: Path) -> None:
    def interrupt(share: float, doing: str) -> None:
        if share > 0.05:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build_plan(candidates, tmp_path / "model.plan", L4, trt=trt, progress=interrupt)
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_failure_while_progress_is_shown_is_not_lost(trt: Any, candidates: Path) -> None:
    def fail(share: float, doing: str) -> None:
        raise ZeroDivisionError("in the bar")

    with pytest.raises(ZeroDivisionError, match="in the bar"):
        build_engine(trt, candidates, L4, progress=fail)


def test_a_plan_is_written_with_its_manifest(trt: Any, candidates: Path, tmp_path: Path) -> None:
    plan = tmp_path / "new" / "model.plan"
    built = build_plan(candidates, plan, L4, trt=trt)
    assert built.manifest == read_manifest(plan)
    assert plan.read_bytes() == built.engine.data
    manifest = built.manifest
    assert (manifest.precision, manifest.batch, manifest.compute_capability) == ("fp32", (1, 2, 4), "8.9")
    assert (manifest.tensorrt, manifest.builder) == (trt.__version__, "tensorrt_rtx")
    assert (manifest.onnx_sha256, manifest.plugins_sha256) == (sha256(candidates), "")
    with pytest.raises(UserError, match="does not fit: it was built by tensorrt_rtx"):
        check_plan(plan, this_target())


def test_a_plan_is_kept_where_its_layers_can_t_be_read(
    trt: Any, candidates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "LISTING", "a word of another version")
    built = build_plan(candidates, tmp_path / "model.plan", L4, trt=trt)
    assert (tmp_path / "model.plan").read_bytes() == built.engine.data
    assert len(built.engine.report.unnamed) == TOY_CONVOLUTIONS and not built.engine.report.convolutions
    assert f"names no layer for {TOY_CONVOLUTIONS} of {TOY_CONVOLUTIONS} convolutions" in built.engine.remarks[0]


def test_a_full_disk_leaves_no_plan(trt: Any, candidates: Path, tmp_path: Path) -> None:
    with files_no_larger_than(4096), pytest.raises(UserError, match=r"model\.plan could not be written") as caught:
        build_plan(candidates, tmp_path / "model.plan", L4, trt=trt)
    assert caught.value.code == 3 and list(tmp_path.iterdir()) == []


def test_too_little_room_is_said_before_the_minutes_of_building(
    trt: Any, candidates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1_000_000))
    with pytest.raises(UserError, match=r"model\.plan needs about 1 MB, 1 MB are free"):
        build_plan(candidates, tmp_path / "model.plan", L4, trt=trt)


def test_a_tensorrt_before_strong_types_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = types.ModuleType("tensorrt")
    old.__version__ = "10.9.0.34"
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    with pytest.raises(UserError, match=r"TensorRT 10\.9\.0\.34 is installed, 10\.12 or later is needed"):
        load_tensorrt()


def test_without_a_gpu_there_is_no_plan(trt: Any, candidates: Path, tmp_path: Path) -> None:
    if find_gpus():
        pytest.skip("this machine has a GPU")
    with pytest.raises(OSError, match=r"libcuda|cuInit"):
        Driver()
    assert this_target().compute_capability == ""
    with pytest.raises(UserError, match="there is no GPU here"):
        build_plan(candidates, tmp_path / "model.plan", replace(L4, compute_capability=""), trt=trt)


@pytest.mark.gpu
def test_a_plan_for_this_gpu_fits_it_and_no_other(
    toy_onnx: Path, flavours: dict[str, Path], tmp_path: Path
) -> None:
    if not find_gpus():
        pytest.skip("needs an NVIDIA GPU")
    pytest.importorskip("tensorrt", reason="needs TensorRT")
    options = EngineOptions((1, 2, 4), timing_cache=tmp_path / "timings")
    for name, path in flavours.items():
        plan = tmp_path / f"{path.stem}.plan"
        built = build_plan(path, plan, options)
        assert check_plan(plan, this_target()) == built.manifest
        assert not built.engine.report.fallen, name
        with pytest.raises(UserError, match=r"the target has 7\.0"):
            check_plan(plan, replace(this_target(), compute_capability="7.0"))
    assert (tmp_path / "timings").stat().st_size > 0
