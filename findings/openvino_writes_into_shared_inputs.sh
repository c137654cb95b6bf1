#!/usr/bin/env bash
# OpenVINO writes another request's input into an array that `infer(..., share_inputs=True)` was given before.
#
# Expected: a shared input is read during its call, and never written.
# Seen:     of a model with open sides, a later call of another request, without share_inputs, puts its input there: of 100
#           arrays 100 hold other values than they were given, with one stream. With fixed sides, or if all calls share,
#           none does. All answers are right.
# Matters:  who keeps what was inferred on, to draw boxes, to crop or to try again, has another image in its place, where
#           some callers of a compiled detector share and others do not.
. "$(dirname "$0")/_venv.sh"
pip 'openvino==2026.4.1' 'numpy==2.2.6'
cat > "$folder/look.py" <<'PYTHON'
import sys

import numpy as np
import openvino as ov
import openvino.opset13 as op


def changed(sides: int, *, second_shares: bool) -> tuple[int, int]:
    """How many of 100 shared arrays hold something else in the end, and how many answers were wrong."""
    x = op.parameter([1, 3, sides, sides], np.float32, name="x")
    compiled = ov.Core().compile_model(ov.Model([op.relu(x)], [x], "relu"), "CPU", {"NUM_STREAMS": 1})
    first, second = compiled.create_infer_request(), compiled.create_infer_request()
    chance = np.random.default_rng(0)
    kept, wrong = [], 0
    for _ in range(100):
        for request, shared in ((first, True), (second, second_shares)):
            image = chance.uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)
            if request is first:
                kept.append((image, image.copy()))
            expected = np.maximum(image, 0)
            wrong += not np.array_equal(request.infer({"x": image}, share_inputs=shared)[0], expected)
    return sum(not np.array_equal(*pair) for pair in kept), wrong


seen = {
    "open sides, the second does not share": changed(-1, second_shares=False),
    "open sides, both share": changed(-1, second_shares=True),
    "fixed sides, the second does not share": changed(64, second_shares=False),
}
print(f"openvino {ov.__version__.split('-')[0]}: arrays changed of 100, wrong answers: {seen}")
sys.exit([each > (0, 0) for each in seen.values()] != [True, False, False] or any(each[1] for each in seen.values()))
PYTHON
python look.py
