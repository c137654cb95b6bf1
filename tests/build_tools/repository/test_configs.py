"""Configs of both profiles: explicit, Triton's own schema, and each way in which they could disagree."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from retinaserve.build_tools.engine.manifest import Manifest
from retinaserve.build_tools.repository.config_checks import check_configs
from retinaserve.build_tools.repository.config_schema import read_config, write_config
from retinaserve.build_tools.repository.configs import MODELS, TEMPLATES, BuildOptions, Profile, specialise
from retinaserve.build_tools.repository.triton_release import TritonRelease
from retinaserve.training.errors import UserError
from tests.toys import CATEGORY_IDS, CLASSES, toy_manifest, toy_spec

EVERY = [(profile, name) for profile, names in MODELS.items() for name in names]
PROFILES: tuple[Profile, ...] = ("cpu", "gpu")


def configs_of(profile: Profile, *, manifest: Manifest | None = None, **options: Any) -> dict[str, Any]:
    if profile == "gpu":
        manifest = manifest or toy_manifest()
    spec = manifest.spec if manifest else toy_spec()
    return specialise(spec, profile, BuildOptions(**options), picture_bytes=1234, manifest=manifest)


@pytest.mark.parametrize(("profile", "name"), EVERY)
def test_templates_leave_nothing_to_auto_completion(profile: str, name: str) -> None:
    path = TEMPLATES / profile / name / "config.pbtxt"
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())  # tritonclient's, nothing added
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
    assert configs_of("cpu", precision="bf16")["retinanet"].parameters["precision"].string_value == "bf16"
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


def spoil_type(configs: dict[str, Any]) -> None:
    configs["retinanet"].output[0].data_type = model_config_pb2.TYPE_FP32


def spoil_dims(configs: dict[str, Any]) -> None:
    configs["preprocess"].output[0].dims[:] = [3, 1, 1]


def spoil_map(configs: dict[str, Any]) -> None:
    del configs["detector"].ensemble_scheduling.step[-1].input_map["letterbox"]


def spoil_step(configs: dict[str, Any]) -> None:
    configs["detector"].ensemble_scheduling.step[-1].model_name = "retina"


def spoil_partial_outputs(configs: dict[str, Any]) -> None:
    del configs["detector"].ensemble_scheduling.step[-2].output_map["letterbox"]


def spoil_source(configs: dict[str, Any]) -> None:
    configs["detector"].ensemble_scheduling.step[-1].input_map["image"] = "picture"


def spoil_crossed(configs: dict[str, Any]) -> None:
    step = configs["detector"].ensemble_scheduling.step[-1]
    step.input_map["image"], step.input_map["letterbox"] = "letterbox", "image"


def spoil_order(configs: dict[str, Any]) -> None:
    steps = configs["detector"].ensemble_scheduling.step
    first = steps.pop(0)
    steps.append(first)


def spoil_twice(configs: dict[str, Any]) -> None:
    configs["detector"].ensemble_scheduling.step[-1].output_map["boxes"] = "letterbox"


def spoil_lost_output(configs: dict[str, Any]) -> None:
    configs["detector"].ensemble_scheduling.step[-1].output_map["boxes"] = "frames"


def spoil_batch(configs: dict[str, Any]) -> None:
    configs["preprocess"].max_batch_size = 3


def spoil_ragged(configs: dict[str, Any]) -> None:
    configs["preprocess"].input[0].allow_ragged_batch = False


def spoil_batching(configs: dict[str, Any]) -> None:
    configs["preprocess"].ClearField("dynamic_batching")


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_type, r"retinanet/config.pbtxt: its outputs are .*float32', shape=\(1,\)"),
        (spoil_dims, r"preprocess/config.pbtxt: its outputs are .*\(3, 1, 1\)"),
        (spoil_map, r"step retinanet maps inputs \['image'\], the model has \['image', 'letterbox'\]"),
        (spoil_step, "step 'retina' is not in the repository"),
        (spoil_partial_outputs, r"step preprocess maps outputs \['image'\], the model has"),
        (spoil_source, "step retinanet takes 'picture', which no step before it gives"),
        (spoil_crossed, r"step retinanet takes 'letterbox' as image, .*\(3, 128, 192\).* but it is .*\(4,\)"),
        (spoil_order, "which no step before it gives"),
        (spoil_twice, "step retinanet gives 'letterbox', which there is already"),
        (spoil_lost_output, "no step gives its output boxes"),
        (spoil_batch, "max_batch_size differs: .*preprocess 3"),
        (spoil_ragged, "input image_bytes needs allow_ragged_batch"),
        (spoil_batching, "preprocess/config.pbtxt: no dynamic_batching"),
    ],
)
def test_configs_that_disagree_are_refused(profile: Profile, spoil: Callable[..., None], words: str) -> None:
    configs = configs_of(profile)
    check_configs(configs, toy_spec())
    spoil(configs)
    with pytest.raises(UserError, match=words):
        check_configs(configs, toy_spec())


def spoil_swap(configs: dict[str, Any]) -> None:
    outputs = configs["preprocess"].output
    first = outputs.pop(0)
    outputs.append(first)


def spoil_graph_dims(configs: dict[str, Any]) -> None:
    configs["retinanet"].optimization.cuda.graph_spec[1].input["image"].dim[:] = [3, 512, 512]


def spoil_graph_batch(configs: dict[str, Any]) -> None:
    configs["retinanet"].optimization.cuda.graph_spec[0].batch_size = 99


def spoil_file(configs: dict[str, Any]) -> None:
    configs["retinanet"].default_model_filename = "detector.plan"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_swap, r"its outputs are \['letterbox', 'image'\]; the pipeline returns .* only the place counts"),
        (spoil_graph_dims, r"the CUDA graph of batch 2 is for .*\(3, 512, 512\)"),
        (spoil_graph_batch, "a CUDA graph is for batch 99, max_batch_size is 24"),
        (spoil_file, "default_model_filename is 'detector.plan'"),
    ],
)
def test_gpu_configs_that_disagree_are_refused(spoil: Callable[..., None], words: str) -> None:
    configs = configs_of("gpu")
    spoil(configs)
    with pytest.raises(UserError, match=words):
        check_configs(configs, toy_spec(), manifest=toy_manifest())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch": (1, 2, 4)}, "max_batch_size is 24, the plan takes batches up to 4"),
        ({"batch": (8, 16, 24)}, "takes no batch below 8"),
        ({"spec": toy_spec().with_size(256, 256)}, "the plan was built for another detector"),
    ],
)
def test_a_plan_that_disagrees_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_configs(configs_of("gpu"), toy_spec(), manifest=replace(toy_manifest(), **change))


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
    assert str(TritonRelease.parse(text)) == version


@pytest.mark.parametrize("text", ["", "latest", "24.09", "2.50", "26.13", "26"])
def test_what_is_no_release_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="Triton"):
        TritonRelease.parse(text)


def test_a_field_that_the_target_does_not_know_is_refused(tmp_path: Path) -> None:
    new, old = TritonRelease.parse("26.05"), TritonRelease.parse("25.10")
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
