#!/usr/bin/env bash
# torch.onnx exports floor division of a negative size as a division that rounds towards zero.
#
# Expected: -(-h // 32), the usual way to round up, is in the graph what it is in Python: 10 for h = 301.
# Seen:     with a dynamic h the graph gives 9, without a warning; (h + 31) // 32 gives 10. A size that is traced as a
#           constant is right, so a check at the exported size finds nothing.
# Matters:  padding and feature sizes of detectors that take images of any size: a row of cells is missing, and boxes come
#           from other cells, at sizes that are no multiple of the stride only.
# Source:   ONNX operators, Div-14: integer division truncates.
. "$(dirname "$0")/_venv.sh"
pip 'torch==2.13.0' 'onnx==1.22.0' 'onnxscript==0.7.2' 'onnxruntime==1.26.0' 'numpy==2.2.6'
cat > "$folder/look.py" <<'PYTHON'
import sys
import warnings

import numpy as np
import onnxruntime as ort
import torch

warnings.simplefilter("ignore")


class Sizes(torch.nn.Module):
    """Two ways to write h / 32, rounded up."""

    def forward(self, x):
        h = x.shape[2]
        return torch.zeros(-(-h // 32)) + x.sum(), torch.zeros((h + 31) // 32) + x.sum()


dynamic = ({2: torch.export.Dim("h", min=2, max=4096)},)
program = torch.onnx.export(Sizes(), (torch.zeros(1, 1, 64, 64),), dynamic_shapes=dynamic, dynamo=True, verbose=False)
session = ort.InferenceSession(program.model_proto.SerializeToString())
seen = {}
for h in (64, 301):
    outputs = session.run(None, {session.get_inputs()[0].name: np.zeros((1, 1, h, 64), np.float32)})
    seen[h] = [len(each) for each in outputs]
print(f"torch {torch.__version__}: -(-h // 32) and (h + 31) // 32 in the graph: {seen}; in Python: 2, 2 and 10, 10")
sys.exit(seen != {64: [2, 2], 301: [9, 10]})
PYTHON
python look.py
