"""Both of NVIDIA's notations of an engine's layers, and what follows from them."""

import json

import onnx
import pytest
from onnx import TensorProto, helper

from retinaserve.build_tools.engine.report import (
    Layer,
    LayerReport,
    parse_inspector,
    parse_listing,
    precision_of,
    stated_precisions,
)

# As TensorRT for RTX 1.7 logs them, with shorter names and tensors.
LISTING = """Layers:
Name: shapes, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: 
Name: quant, LayerType: kgen, Inputs: [ { Name: a, Dimensions: [-1,3], Datatype: Float, Format: (Linear) Row }],\
 Constants: [ { Name: k, Dimensions: [1], Datatype: Float, Format: x }], Outputs: [ { Name: b, Dimensions: [-1,3],\
 Datatype: Int8, Format: x }], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: relu][ONNX Layer: conv_1]
Name: conv, LayerType: correlation, Inputs: [ { Name: b, Dimensions: [-1,3], Datatype: Int8, Format: x }],\
 Constants: [], Outputs: [ { Name: c, Dimensions: [-1], Datatype: Float, Format: x }], TacticName: t, StreamId: 0,\
 Metadata: [ONNX Layer: conv_1]
Name: fused, LayerType: runtime_fusion, Inputs: [ { Name: c, Dimensions: [-1], Datatype: Half, Format: x }],\
 Outputs: [ { Name: d, Dimensions: [-1], Datatype: Half, Format: x }], TacticName: , StreamId: 0,\
 Metadata: [ONNX Layer: conv_2][ONNX Layer: relu_2]__gemm_from_conv1x1
Name: w, LayerType: wait, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, EventId: 9, Metadata: 
I/O Tensors:
 Name: a, IOMode: Input, DataType: Float
"""
# As TensorRT 10's inspector writes them (its documentation, "Engine Inspector").
INSPECTED = {
    "Layers": [
        {
            "Name": "conv + relu",
            "LayerType": "CaskConvolution",
            "Inputs": [
                {"Name": "b", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}
            ],
            "Outputs": [{"Name": "c", "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}],
            "Metadata": "[ONNX Layer: conv_1]\u001e[ONNX Layer: relu]",
        },
        {"Name": "kernel", "LayerType": "kgen", "Inputs": [{"Name": "c", "Datatype": "Half"}], "Outputs": []},
    ],
    "Bindings": ["a"],
}


def test_the_builder_s_listing() -> None:
    assert parse_listing("") == []
    assert parse_listing(LISTING) == [
        Layer("shapes", "shape_call", "", ()),
        Layer("quant", "kgen", "fp32", ("relu", "conv_1")),
        Layer("conv", "correlation", "int8", ("conv_1",)),
        Layer("fused", "runtime_fusion", "fp16", ("conv_2", "relu_2")),
        Layer("w", "wait", "", ()),
    ]


def test_the_inspector_s_json() -> None:
    assert parse_inspector(json.dumps({"Layers": []})) == []
    assert parse_inspector(json.dumps(INSPECTED)) == [
        Layer("conv + relu", "CaskConvolution", "int8", ("conv_1", "relu")),
        Layer("kernel", "kgen", "fp16", ()),
    ]


@pytest.mark.parametrize(
    ("word", "expected"),
    [("", ""), ("Int64", ""), ("Int8", "int8"), ("UInt8", ""), ("Half", "fp16"), ("Row major linear FP32", "fp32"),
     ("Float", "fp32"), ("BFloat16", "bf16"), ("FP8", "fp8"), ("Bool", ""), ("Float16", "fp16")],
)  # fmt: skip
def test_types_in_nvidia_s_words(word: str, expected: str) -> None:
    assert precision_of(word) == expected


def network() -> onnx.ModelProto:
    """Two convolutions: the first on what was quantized, the second in half."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x"], "dq"),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["y"], "dw"),
        helper.make_node("Conv", ["x", "y"], ["b"], "conv_1"),
        helper.make_node("Conv", ["b", "v"], ["c"], "conv_2"),
    ]
    constants = [
        helper.make_tensor("s", TensorProto.FLOAT16, [], [0.5]),
        helper.make_tensor("z", TensorProto.INT8, [], [0]),
        helper.make_tensor("w", TensorProto.INT8, [1, 1, 1, 1], [1]),
        helper.make_tensor("v", TensorProto.FLOAT16, [1, 1, 1, 1], [1.0]),
    ]
    shape = ["n", 1, 2, 2]
    graph = helper.make_graph(
        nodes, "g", [value("a", TensorProto.FLOAT16, shape)], [value("c", TensorProto.FLOAT16, shape)], constants
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)


def test_what_the_graph_states() -> None:
    assert stated_precisions(network()) == {"conv_1": "int8", "conv_2": "fp16"}


def test_the_report_counts_and_compares() -> None:
    report = LayerReport.of(network(), parse_listing(LISTING))
    assert report.layers == 4  # waiting is none
    assert report.asked == report.convolutions == {"int8": 1, "fp16": 1}
    assert report.fallen == () and report.other == {"none": 1, "fp32": 1}


def test_a_wider_type_than_stated_is_told() -> None:
    listing = LISTING.replace(
        "Dimensions: [-1,3], Datatype: Int8, Format: x }], Constants: []", "Datatype: Half }]"
    )
    report = LayerReport.of(network(), parse_listing(listing))
    assert report.convolutions == {"fp16": 2} and report.fallen == ("conv_1",)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("{", id="no JSON"),
        pytest.param("[]", id="no object"),
        pytest.param("{}", id="no layers"),
        pytest.param(json.dumps({"Layers": ["conv + relu"]}), id="names of layers only"),
        pytest.param(json.dumps({"Layers": [{"Name": "conv"}]}), id="layers without a type"),
    ],
)
def test_a_report_in_another_notation_names_no_layers(text: str) -> None:
    assert parse_inspector(text) == []


def test_a_convolution_in_no_layer_is_unnamed() -> None:
    report = LayerReport.of(network(), parse_listing(LISTING.replace("conv_2", "other")))
    assert report.unnamed == ("conv_2",) and report.fallen == ()
    assert report.asked == {"int8": 1, "fp16": 1} and report.convolutions == {"int8": 1}
