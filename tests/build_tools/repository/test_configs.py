"""Configs of both profiles: explicit, in Triton's own schema, and in agreement with graph, plan and pipeline."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from nvidia.dali import types as dali
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import triton_to_np_dtype

from retinaserve.build_tools.engine.manifest import Manifest
from retinaserve.build_tools.preprocess import pipeline
from retinaserve.build_tools.repository.configs import (
    MODELS,
    BuildOptions,
    Profile,
    read_config,
    specialise,
    triton_version,
    version_text,
    write_config,
)
from retinaserve.training.errors import UserError
from retinaserve.training.spec import Tensor
from tests.toys import CATEGORY_IDS, CLASSES, toy_manifest, toy_spec

EVERY = [(profile, name) for profile, names in MODELS.items() for name in names]
PROFILES: tuple[Profile, ...] = ("cpu", "gpu")


def configs_of(profile: Profile, *, manifest: Manifest | None = None, **options: Any) -> dict[str, Any]:
    if profile == "gpu":
        manifest = manifest or toy_manifest()
    spec = manifest.spec if manifest else toy_spec()
    return specialise(spec, profile, BuildOptions(**options), image_bytes=1234, manifest=manifest)


@pytest.mark.parametrize(("profile", "name"), EVERY)
def test_configs_leave_nothing_to_auto_completion(profile: Profile, name: str) -> None:
    text = text_format.MessageToString(configs_of(profile)[name])
    config = text_format.Parse(text, model_config_pb2.ModelConfig())  # tritonclient's, nothing added
    assert config.name == name and config.max_batch_size > 0
    assert config.backend in ("python", "dali", "tensorrt") or config.platform == "ensemble"
    assert config.input and config.output and all(t.dims for t in (*config.input, *config.output))
    if config.backend:
        assert config.HasField("dynamic_batching") and config.instance_group and config.model_warmup


@pytest.mark.parametrize("profile", PROFILES)
def test_all_waiting_stands_before_the_first_step_which_never_idles_behind_it(profile: Profile) -> None:
    gate = configs_of(profile)["admission" if profile == "gpu" else "preprocess"]
    policy = gate.dynamic_batching.default_queue_policy
    assert policy.max_queue_size > 0 and policy.default_timeout_microseconds > 0
    # Triton looks into a queue that has a policy only while an instance waits for work.
    assert sum(group.count for group in gate.instance_group) > 1


@pytest.mark.parametrize(
    ("options", "waiting"), [({}, 32), ({"max_batch": 64}, 128), ({"max_queue": 5, "max_batch": 8}, 5)]
)
def test_the_queue_is_as_long_as_asked(options: dict[str, int], waiting: int) -> None:
    policy = configs_of("cpu", **options)["preprocess"].dynamic_batching.default_queue_policy
    assert policy.max_queue_size == waiting


@pytest.mark.parametrize("profile", PROFILES)
def test_specialised_configs_carry_the_detector(profile: Profile) -> None:
    configs = configs_of(profile, max_batch=5, max_image_pixels=77)
    assert tuple(configs) == MODELS[profile]
    assert {config.max_batch_size for config in configs.values()} == {5}
    assert list(configs["preprocess"].output[0].dims) == [3, 128, 192]
    assert list(configs["preprocess"].model_warmup[0].inputs["image_bytes"].dims) == [1234]
    assert list(configs["retinanet"].model_warmup[0].inputs["image"].dims) == [3, 128, 192]
    told = {key: value.string_value for key, value in configs["detector"].parameters.items()}
    assert json.loads(told["classes"]) == list(CLASSES)
    assert json.loads(told["category_ids"]) == list(CATEGORY_IDS)
    gate = configs["admission" if profile == "gpu" else "preprocess"]
    assert gate.parameters["max_image_pixels"].string_value == told["max_image_pixels"] == "77"


def test_precision_is_the_deployers_on_a_cpu_and_the_plans_on_a_gpu() -> None:
    assert configs_of("cpu", arithmetic="bf16")["retinanet"].parameters["precision"].string_value == "bf16"
    assert configs_of("gpu")["retinanet"].parameters["precision"].string_value == "int8"


def test_the_largest_batch_is_the_plans_unless_a_smaller_one_is_asked_for() -> None:
    assert configs_of("cpu")["retinanet"].max_batch_size == 4
    assert configs_of("gpu")["retinanet"].max_batch_size == 24
    assert configs_of("gpu", max_batch=6)["retinanet"].max_batch_size == 6


@pytest.mark.parametrize(
    ("most", "graphs"),
    [
        (1, [(1, 1)]),
        (2, [(1, 1), (2, 2)]),
        (8, [(1, 1), (2, 2), (3, 4), (5, 8)]),
        (24, [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 24)]),
    ],
)
def test_every_batch_size_has_one_cuda_graph(most: int, graphs: list[tuple[int, int]]) -> None:
    specs = configs_of("gpu", max_batch=most)["retinanet"].optimization.cuda.graph_spec
    assert [(spec.graph_lower_bound.batch_size or spec.batch_size, spec.batch_size) for spec in specs] == graphs
    for spec in specs:
        bounds = [spec, spec.graph_lower_bound] if spec.HasField("graph_lower_bound") else [spec]
        assert all(list(bound.input["image"].dim) == [3, 128, 192] for bound in bounds)
        assert all(list(bound.input["letterbox"].dim) == [4] for bound in bounds)


ENCODED = Tensor("uint8", (-1,))


def tensors(listed: Any) -> dict[str, Tensor]:
    """Return the inputs or outputs of a config."""
    names = {each.name: model_config_pb2.DataType.Name(each.data_type).removeprefix("TYPE_") for each in listed}
    return {
        each.name: Tensor(np.dtype(triton_to_np_dtype(names[each.name])).name, tuple(each.dims)) for each in listed
    }


@pytest.mark.parametrize("profile", PROFILES)
def test_configs_have_the_tensors_of_the_spec(profile: Profile) -> None:
    spec, encoded = toy_spec(), {"image_bytes": ENCODED}
    expected = {
        "admission": (encoded, encoded),
        "preprocess": (encoded, spec.inputs),
        "retinanet": (spec.inputs, spec.outputs),
        "detector": (encoded, {**spec.outputs, "letterbox": spec.inputs["letterbox"]}),
    }
    for name, config in configs_of(profile).items():
        assert (tensors(config.input), tensors(config.output)) == expected[name]


@pytest.mark.parametrize("profile", PROFILES)
def test_requests_share_executions(profile: Profile) -> None:
    configs = configs_of(profile)
    assert len({config.max_batch_size for config in configs.values()}) == 1
    for config in configs.values():
        assert config.HasField("ensemble_scheduling") or config.HasField("dynamic_batching")
        for tensor in config.input:  # or images of different length never share an execution
            assert tensor.allow_ragged_batch == (tensor.name == "image_bytes")


@pytest.mark.parametrize("profile", PROFILES)
def test_the_ensembles_tensors_are_made_once_before_they_are_used_and_fit(profile: Profile) -> None:
    configs = configs_of(profile)
    known = tensors(configs["detector"].input)
    for step in configs["detector"].ensemble_scheduling.step:
        inputs, outputs = tensors(configs[step.model_name].input), tensors(configs[step.model_name].output)
        assert set(step.input_map) == set(inputs) and set(step.output_map) == set(outputs)
        assert {name: known[step.input_map[name]] for name in inputs} == inputs
        made = {step.output_map[name]: tensor for name, tensor in outputs.items()}
        assert not made.keys() & known.keys()
        known |= made
    answered = tensors(configs["detector"].output)
    assert {name: known[name] for name in answered} == answered


def test_the_dali_backend_finds_its_source_and_each_output_at_its_place() -> None:
    """It goes by the source's name and the outputs' places: swapped, they are served under each other's names."""
    config = configs_of("gpu")["preprocess"]
    assert config.backend == "dali" and [tensor.name for tensor in config.input] == [pipeline.INPUT]
    found = tensors(config.output)
    assert tuple(found) == pipeline.OUTPUTS
    types = {dali.UINT8: "uint8", dali.FLOAT: "float32"}
    assert [tensor.dtype for tensor in found.values()] == [
        types[kind] for kind in pipeline.declared()["output_dtype"]
    ]
    assert [len(tensor.shape) for tensor in found.values()] == pipeline.OUTPUT_RANKS


def test_the_plan_is_the_file_that_build_writes() -> None:
    assert configs_of("gpu")["retinanet"].default_model_filename == "model.plan"


def test_a_canvas_of_each_images_own_size_is_open_from_model_to_model() -> None:
    spec = replace(toy_spec(), resize="torchvision", size=(96, 160))
    manifest = replace(toy_manifest(), spec=spec, batch=(1, 2, 2))
    canvases = [(96, 128), (128, 96)]  # of the warm-up image, 640 x 480, and of one that stands upright
    for profile in PROFILES:
        configs = specialise(spec, profile, BuildOptions(), image_bytes=9, manifest=manifest)
        network, image = configs["retinanet"], configs["retinanet"].input[0]
        assert list(image.dims) == list(configs["preprocess"].output[0].dims) == [3, -1, -1]
        assert image.allow_ragged_batch == (profile == "cpu")
        warmed = [tuple(sample.inputs["image"].dims[1:]) for sample in network.model_warmup]
        assert warmed == canvases and len({sample.name for sample in network.model_warmup}) == 2
        assert {configs[name].parameters["resize"].string_value for name in ("preprocess", "detector")} == {
            "torchvision"
        }
    assert list(network.instance_group[0].profile) == ["0", "1"]
    graphs = [(each.batch_size, tuple(each.input["image"].dim)) for each in network.optimization.cuda.graph_spec]
    assert graphs == [(size, (3, *canvas)) for size in (1, 2) for canvas in canvases]


@pytest.mark.parametrize("profile", PROFILES)
def test_pixels_have_one_type_from_model_to_model(profile: Profile) -> None:
    spec = replace(toy_spec(), pixels="float32")
    manifest = replace(toy_manifest(), spec=spec)
    configs = specialise(spec, profile, BuildOptions(), image_bytes=9, manifest=manifest)
    made, taken = configs["preprocess"].output[0], configs["retinanet"].input[0]
    (warmed,) = (sample.inputs["image"] for sample in configs["retinanet"].model_warmup)
    assert {each.data_type for each in (made, taken, warmed)} == {model_config_pb2.TYPE_FP32}
    fill = json.loads(configs["preprocess"].parameters["fill"].string_value)
    assert fill == pytest.approx([255 * value for value in spec.mean], abs=1e-9)


def test_a_plan_without_a_batch_of_one_is_refused() -> None:
    with pytest.raises(UserError, match="takes no batch below 8"):
        configs_of("gpu", manifest=replace(toy_manifest(), batch=(8, 16, 24)))


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("2.51", "2.51"),
        ("2.69.0", "2.69"),
        ("v2.63.0", "2.63"),
        ("24.10", "2.51"),
        ("25.07-py3", "2.59"),
        ("25.11", "2.63"),
        ("26.02", "2.66"),
        ("26.05", "2.69"),
        ("26.07", "2.71"),
    ],
)
def test_a_release_is_known_by_its_own_or_its_containers_version(text: str, version: str) -> None:
    assert version_text(triton_version(text)) == version


@pytest.mark.parametrize("text", ["", "latest", "24.09", "2.50", "26.13", "26"])
def test_what_is_no_release_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="Triton"):
        triton_version(text)


def test_a_field_that_the_target_does_not_know_is_refused(tmp_path: Path) -> None:
    new, old = triton_version("26.05"), triton_version("25.10")
    detector = configs_of("gpu", max_inflight=64, triton=new)["detector"]
    write_config(tmp_path / "config.pbtxt", detector)
    assert read_config(tmp_path / "config.pbtxt") == detector
    assert "max_inflight_requests: 64" in (tmp_path / "config.pbtxt").read_text()
    with pytest.raises(UserError, match=r"Triton 2\.62 does not know .*max_inflight_requests .*25\.11"):
        configs_of("gpu", max_inflight=64, triton=old)
    configs_of("gpu", triton=old)  # nothing else is too new
    with pytest.raises(text_format.ParseError, match="max_inflight_requests"):  # what Triton 2.51 would say
        text_format.Parse((tmp_path / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def test_a_config_with_a_typo_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text('name: "x"\nmax_batchsize: 3\n')
    with pytest.raises(UserError, match=r"2:1.*max_batchsize"):
        read_config(path)
