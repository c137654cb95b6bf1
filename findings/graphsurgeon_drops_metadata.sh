#!/usr/bin/env bash
# onnx-graphsurgeon loses a model's metadata on the way through import_onnx and export_onnx.
#
# Expected: what is not touched comes out as it went in.
# Seen:     metadata_props, doc_string, domain and model_version of the model and the nodes' doc strings are gone;
#           nodes, weights, opsets and the producer's name stay. No warning.
# Matters:  detectors keep class names, thresholds, mean or anchors in metadata_props (so do YOLO exporters): after a
#           graft with graphsurgeon the file answers numbers without names. Copy metadata_props over by hand.
. "$(dirname "$0")/_venv.sh"
pip 'onnx-graphsurgeon==0.6.1' 'onnx==1.22.0'
cat > "$folder/look.py" <<'PYTHON'
import sys

import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper

value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
node = helper.make_node("Identity", ["x"], ["y"], doc_string="from layer 3")
model = helper.make_model(helper.make_graph([node], "g", value[:1], value[1:]), producer_name="trainer")
model.doc_string, model.domain, model.model_version = "a detector", "org.example", 7
helper.set_model_props(model, {"names": "cat,dog"})
out = gs.export_onnx(gs.import_onnx(model))


def facts(each: onnx.ModelProto) -> tuple[object, ...]:
    props = {prop.key: prop.value for prop in each.metadata_props}
    return props, each.doc_string, each.domain, each.model_version, each.graph.node[0].doc_string, each.producer_name


print(f"onnx-graphsurgeon {gs.__version__}, onnx {onnx.__version__}")
print(f"in {facts(model)}, out {facts(out)}")
sys.exit(facts(out) != ({}, "", "", 0, "", "trainer"))
PYTHON
python look.py
