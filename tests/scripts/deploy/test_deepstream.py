"""DeepStream's custom library and config against NVIDIA's published headers and schema.

    git clone --depth 1 https://github.com/NVIDIA/DeepStream && pip install grpcio-tools
    RETINASERVE_DEEPSTREAM=DeepStream/includes pytest tests/scripts/deploy/test_deepstream.py

Without them the tests say so and skip; nothing of NVIDIA's is in this repository.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from retinaserve.training.spec import IMAGE, LETTERBOX, OUTPUTS, RETINANET
from tests.plugins.libraries import require_headers

FOLDER = Path(__file__).parents[3] / "scripts" / "deploy" / "deepstream"
SOURCE, CONFIG = FOLDER / "retinaserve_deepstream.cpp", FOLDER / "nvinferserver.txt"

# Two detections that count, one of a class that is not asked for, one below its class's threshold, one empty slot.
CALL = """
#include "SOURCE"
#include <cassert>
#include <cstdio>

int main()
{
    auto const layer = [](char const* name, NvDsInferDataType type, unsigned int elements, void* buffer)
    {
        NvDsInferLayerInfo made{};
        made.dataType = type;
        made.inferDims.numElements = elements;
        made.layerName = name;
        made.buffer = buffer;
        return made;
    };
    float letterbox[12]{};
    NvDsInferNetworkInfo const network{640, 512, 3}; // width, height, channels
    std::vector<NvDsInferLayerInfo> inputs{layer("letterbox", FLOAT, 4, letterbox)};
    assert(NvDsInferInitializeInputLayers(inputs, network, 3));
    for (int i = 0; i < 12; ++i)
    {
        assert(letterbox[i] == (i % 2 == 0 ? 512 : 640));
    }
    inputs[0].layerName = "another";
    assert(!NvDsInferInitializeInputLayers(inputs, network, 3));

    int count = 4;
    float boxes[]{1, 2, 11, 22, 5, 5, 9, 9, 3, 4, 6, 8, 0, 0, 1, 1, 0, 0, 0, 0};
    float scores[]{0.9F, 0.8F, 0.7F, 0.2F, 0};
    int classes[]{1, 2, 0, 1, 0};
    std::vector<NvDsInferLayerInfo> outputs{layer("num_detections", INT32, 1, &count),
        layer("boxes", FLOAT, 20, boxes), layer("scores", FLOAT, 5, scores), layer("classes", INT32, 5, classes)};
    NvDsInferParseDetectionParams params{};
    params.numClassesConfigured = 2;
    params.perClassPreclusterThreshold = {0.5F, 0.3F};
    std::vector<NvDsInferObjectDetectionInfo> found;
    assert(retinaserveParse(outputs, network, params, found));
    for (auto const& each : found)
    {
        std::printf("%u %g %g %g %g %g\\n", each.classId, each.left, each.top, each.width, each.height,
            each.detectionConfidence);
    }
    outputs.pop_back();
    assert(!retinaserveParse(outputs, network, params, found));
}
"""


@pytest.fixture
def includes() -> Path:
    folder = Path(os.environ.get("RETINASERVE_DEEPSTREAM", "none"))
    if not (folder / "nvdsinfer_custom_impl.h").is_file():
        pytest.skip("needs NVIDIA/DeepStream's includes: set RETINASERVE_DEEPSTREAM to the folder")
    return folder


def test_the_library_finds_boxes_in_the_outputs(includes: Path, tmp_path: Path) -> None:
    (tmp_path / "call.cpp").write_text(CALL.replace("SOURCE", str(SOURCE)))
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-isystem", str(includes), *require_headers()]
    # The header of the parser for ONNX is included there and nothing of it is used.
    (tmp_path / "NvOnnxParser.h").touch()
    command = ["g++", *flags, "-isystem", str(tmp_path), str(tmp_path / "call.cpp"), "-o", str(tmp_path / "call")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = subprocess.run([tmp_path / "call"], capture_output=True, text=True, check=True).stdout
    assert shown == "1 1 2 10 20 0.9\n0 3 4 3 4 0.7\n"


READ = """
import json, sys
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory, text_format
files = descriptor_pb2.FileDescriptorSet.FromString(open(sys.argv[1], "rb").read())
pool = descriptor_pool.DescriptorPool()
for each in files.file: pool.Add(each)
kind = pool.FindMessageTypeByName("nvdsinferserver.config.PluginControl")
config = text_format.Parse(open(sys.argv[2]).read(), message_factory.GetMessageClass(kind)())
print(json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True)))
"""


def test_the_config_is_of_the_published_schema_and_names_our_tensors(includes: Path, tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="needs grpcio-tools, for protoc")
    import json

    command = [
        sys.executable, "-m", "grpc_tools.protoc", f"-I{includes}", "--include_imports",
        f"--descriptor_set_out={tmp_path / 'schema'}", "nvdsinferserver_plugin.proto",
    ]  # fmt: skip
    subprocess.run(command, check=True)
    done = subprocess.run(
        [sys.executable, "-c", READ, tmp_path / "schema", CONFIG], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    config = json.loads(done.stdout)["infer_config"]
    assert config["backend"]["triton"]["model_name"] == RETINANET
    assert [each["name"] for each in config["backend"]["inputs"]] == [IMAGE, LETTERBOX]
    assert config["preprocess"]["tensor_name"] == IMAGE and config["preprocess"]["maintain_aspect_ratio"] == 1
    assert config["postprocess"]["detection"]["custom_parse_bbox_func"] == "retinaserveParse"


def test_the_library_s_names_are_the_detector_s() -> None:
    source, config = SOURCE.read_text(), CONFIG.read_text()
    assert all(f'"{name}"' in source for name in (*OUTPUTS, LETTERBOX))
    assert f'model_name: "{RETINANET}"' in config and f'name: "{IMAGE}"' in config
