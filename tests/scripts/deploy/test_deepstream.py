"""DeepStream's custom library and config against NVIDIA's published headers and schema.

    git clone --depth 1 https://github.com/NVIDIA/DeepStream
    RETINASERVE_DEEPSTREAM=DeepStream/includes pytest tests/scripts/deploy/test_deepstream.py

Without them those tests skip that compile against NVIDIA's headers, and the one that compares its schema with what
is known of it here.
"""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

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


# What the config says, as DeepStream's schema has it: fields by message, values by enum.
MESSAGES = {
    "PluginControl": ["InferenceConfig infer_config", "InputControl input_control"],
    "InferenceConfig": [
        "uint32 unique_id", "repeated int32 gpu_ids", "uint32 max_batch_size", "BackendParams backend",
        "PreProcessParams preprocess", "PostProcessParams postprocess", "CustomLib custom_lib",
    ],
    "BackendParams": ["repeated InputLayer inputs", "TritonParams triton", "MemoryType output_mem_type"],
    "InputLayer": ["string name", "repeated int32 dims", "TensorDataType data_type"],
    "TritonParams": ["string model_name", "int64 version", "TritonGrpcParams grpc"],
    "TritonGrpcParams": ["string url", "bool enable_cuda_buffer_sharing"],
    "PreProcessParams": [
        "MediaFormat network_format", "TensorOrder tensor_order", "string tensor_name",
        "int32 maintain_aspect_ratio", "ScaleNormalize normalize", "int32 symmetric_padding",
    ],
    "ScaleNormalize": ["float scale_factor"],
    "PostProcessParams": ["string labelfile_path", "DetectionParams detection"],
    "DetectionParams": [
        "int32 num_detected_classes", "string custom_parse_bbox_func", "SimpleCluster simple_cluster",
    ],
    "SimpleCluster": ["float threshold"],
    "CustomLib": ["string path"],
    "InputControl": ["ProcessMode process_mode", "uint32 interval"],
}  # fmt: skip
ENUMS = {
    "MediaFormat": ["IMAGE_FORMAT_RGB"],
    "TensorOrder": ["TENSOR_ORDER_LINEAR"],
    "TensorDataType": ["TENSOR_DT_UINT8", "TENSOR_DT_FP32"],
    "MemoryType": ["MEMORY_TYPE_CPU"],
    "ProcessMode": ["PROCESS_MODE_FULL_FRAME"],
}


def plugin_control() -> Any:
    """Return an empty message of the schema's root, as far as MESSAGES and ENUMS go."""
    file = descriptor_pb2.FileDescriptorProto(name="deepstream")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, field in enumerate(fields, start=1):
            *repeated, kind, word = field.split()
            made = message.field.add(name=word, number=number, label=3 if repeated else 1)
            if kind in MESSAGES or kind in ENUMS:
                made.type_name = kind
            else:
                made.type = descriptor_pb2.FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("PluginControl"))()


def test_the_config_is_of_the_schema_and_names_our_tensors() -> None:
    config = text_format.Parse(CONFIG.read_text(), plugin_control()).infer_config
    assert config.backend.triton.model_name == RETINANET
    assert [each.name for each in config.backend.inputs] == [IMAGE, LETTERBOX]
    assert config.preprocess.tensor_name == IMAGE and config.preprocess.maintain_aspect_ratio == 1
    assert config.postprocess.detection.custom_parse_bbox_func == "retinaserveParse"
    with pytest.raises(text_format.ParseError, match="grcp"):
        text_format.Parse(CONFIG.read_text().replace("grpc {", "grcp {"), plugin_control())


def test_the_schema_is_the_published_one(includes: Path) -> None:
    files = [includes / f"nvdsinferserver_{part}.proto" for part in ("common", "config", "plugin")]
    schema = re.sub(r"/\*.*?\*/|//[^\n]*", "", "".join(file.read_text() for file in files), flags=re.DOTALL)
    schema = " ".join(re.sub(r"([{};])", r" \1 ", schema).split())
    for kind, content in [("message", MESSAGES), ("enum", ENUMS)]:
        for name, words in content.items():
            body = schema.split(f"{kind} {name} {{", 1)[1]
            end = next(
                place for place in range(len(body) + 1) if body[:place].count("{") < body[:place].count("}")
            )
            for word in words:
                assert re.search(rf"[{{;}}] {word} ?= ?\d+ ;", "{" + body[:end]), f"{name}: {word}"


def test_the_library_s_names_are_the_detector_s() -> None:
    source, config = SOURCE.read_text(), CONFIG.read_text()
    assert all(f'"{name}"' in source for name in (*OUTPUTS, LETTERBOX))
    assert f'model_name: "{RETINANET}"' in config and f'name: "{IMAGE}"' in config
