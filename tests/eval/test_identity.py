import hashlib
from pathlib import Path

import onnx
import pytest

from retinaserve.build_tools.repository.configs import read_config
from retinaserve.eval.client.client import Client
from retinaserve.eval.client.server_info import Identity
from retinaserve.eval.runtimes.detector import open_detector
from retinaserve.scripts.server.triton import TritonServer
from retinaserve.training.spec import METADATA_CHECKPOINT


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.server
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_says_which_model_it_has(server: TritonServer, toy_onnx: Path, protocol: str) -> None:
    url = server.grpc_url if protocol == "grpc" else f"http://{server.http_url}"
    with Client(url) as client:
        identity = client.identity()
    assert identity.graph_sha256 == sha256(toy_onnx)
    assert identity.runtime.startswith("triton 2.") and identity.precision == "f32"
    models = {"preprocess", "retinanet", "detector"}
    assert set(identity.versions) == models and set(identity.versions.values()) == {"1"}
    assert identity.instances["retinanet"] == 1 and identity.where.startswith(protocol)


def test_a_graph_says_which_checkpoint_it_is_from(toy_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(toy_onnx)
    assert Identity.of_file(toy_onnx, runtime="x").checkpoint_sha256 == "", "the toy has none"
    model.metadata_props.add(key=METADATA_CHECKPOINT, value="abc")
    onnx.save(model, tmp_path / "model.onnx")
    identity = open_detector(tmp_path / "model.onnx", threads=1).identity()
    assert identity.checkpoint_sha256 == "abc" and identity.graph_sha256 == sha256(tmp_path / "model.onnx")
    assert identity.runtime.startswith(("OpenVINO 20", "ONNX Runtime 1")) and identity.precision == "fp32"


def test_the_config_of_a_repository_carries_the_hash(repository: Path, toy_onnx: Path) -> None:
    parameters = read_config(repository / "detector" / "config.pbtxt").parameters
    assert parameters["graph_sha256"].string_value == sha256(toy_onnx)


# As Triton answers: gRPC leaves out what is empty, an instance group may be on several devices.
CONFIGS = {
    "nothing told": ({"name": "detector"}, 1),
    "three on the CPU": ({"instance_group": [{"count": 3, "kind": "KIND_CPU"}]}, 3),
    "two on each of two GPUs": ({"instance_group": [{"count": 2, "gpus": [0, 1]}]}, 4),
    "one on a GPU, one on the CPU": ({"instance_group": [{"count": 1, "gpus": [0]}, {"count": 1}]}, 2),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_instances_are_counted(case: str) -> None:
    config, expected = CONFIGS[case]
    identity = Identity.of_server({"detector": config}, [], server="triton", address="x")
    assert identity.instances == {"detector": expected}
    assert (identity.graph_sha256, identity.versions) == ("", {})
