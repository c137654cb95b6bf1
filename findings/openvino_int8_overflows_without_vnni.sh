#!/usr/bin/env bash
# OpenVINO's INT8 convolutions overflow on x86 processors without VNNI, signed activations most.
#
# Expected: eight products of 127 and 127 are 129,032 on every processor.
# Seen:     where oneDNN is held to AVX2 or AVX-512 without VNNI, as on Zen 1 to 3, Haswell and Skylake, it is 1,020:
#           pairs of products are added in 16 bits that stop at 32,767, after 128 was added to signed activations.
#           With weights of 7 bits nothing overflows.
# Matters:  logits of an INT8 detector are off by whole units there, without an error, while AP measured on the machine
#           that made it is right. Neither the compiled model nor OPTIMIZATION_CAPABILITIES tells.
# Source:   oneDNN, "Nuances of int8 computations"; ONEDNN_MAX_CPU_ISA chooses the same kernels as an older processor.
. "$(dirname "$0")/_venv.sh"
pip 'openvino==2026.4.1' 'numpy==2.2.6'
cat > "$folder/look.py" <<'PYTHON'
import sys

import numpy as np
import openvino as ov
from openvino import opset13 as ops

largest = int(sys.argv[1])
given = ops.parameter([1, 8, 1, 1], np.float32)
low, high = np.float32(-128), np.float32(127)
rounded = ops.fake_quantize(given, low, high, low, high, 256)
weights = ops.convert(ops.constant(np.full((8, 8, 1, 1), largest, np.int8)), "f32")
scaled = ops.multiply(weights, ops.constant(np.ones((8, 1, 1, 1), np.float32)))
model = ov.Model([ops.convolution(rounded, scaled, [1, 1], [0, 0], [0, 0], [1, 1])], [given])
core = ov.Core()
compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
print(int(compiled(np.full((1, 8, 1, 1), 127, np.float32))[0].max()))
PYTHON
changed=0
for processor in ALL AVX512_CORE AVX2; do
    for largest in 127 64; do
        expected=$((8 * 127 * largest))
        [ "$processor$largest" = AVX2127 ] || [ "$processor$largest" = AVX512_CORE127 ] && expected=1020
        seen=$(ONEDNN_MAX_CPU_ISA=$processor python look.py "$largest")
        echo "openvino 2026.4.1, $processor: 8 * 127 * $largest is $seen"
        [ "$seen" = "$expected" ] || { [ "$processor" = ALL ] && [ "$seen" = 1020 ]; } || changed=1
    done
done
exit $changed
