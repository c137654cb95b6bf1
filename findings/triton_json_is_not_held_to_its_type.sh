#!/usr/bin/env bash
# Triton's JSON takes numbers that a tensor's type does not have and answers with words that JSON does not have.
#
# Expected: 300 for a UINT8 and rows of unequal length for a matrix are refused, as 1.7 for an INT32 is; an answer is
#           JSON, whatever the numbers in it.
# Seen:     300 becomes 44, 3e9 in an INT32 a negative number, and [[1, 2, 3], [4]] a 2 x 2 matrix; NaN and infinity are
#           answered as `NaN` and `Infinity`, which JSON.parse, jq and Go refuse.
# Matters:  images of 16 bits, or summed ones, that are sent as JSON reach the detector with other pixels; one NaN among
#           the boxes makes the whole answer unreadable for a browser. Binary tensors have neither problem.
# Source:   RFC 8259, 6: "Numeric values that cannot be represented ... (such as Infinity and NaN) are not permitted".
. "$(dirname "$0")/_venv.sh"
pip 'nvidia-pytriton==0.7.0' 'numpy==1.26.4' 'tritonclient[http,grpc]==2.69.0'
cp "$(dirname "$0")/_triton.py" "$folder"
cat > "$folder/ask.py" <<'PYTHON'
import json
import sys
import urllib.error
import urllib.request

from _triton import triton

ECHO = """
        x = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", each / NUMBER if NUMBER != 1 else each)]) for each in x]
"""


def model(kind: str, number: str = "1") -> tuple[str, str]:
    tensor = f"data_type: TYPE_{kind} dims: [ -1, -1 ] }}]"
    return f'input [{{ name: "x" {tensor} output [{{ name: "y" {tensor}', ECHO.replace("NUMBER", number)


def refused(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def ask(url: str, name: str, kind: str, shape: list[int], data: object) -> object:
    body = {"inputs": [{"name": "x", "shape": shape, "datatype": kind, "data": data}]}
    try:
        with urllib.request.urlopen(f"http://{url}/v2/models/{name}/infer", json.dumps(body).encode()) as answer:
            return json.loads(answer.read(), parse_constant=refused)["outputs"][0]["data"]
    except urllib.error.HTTPError as error:
        return f"status {error.code}"
    except ValueError as error:
        return str(error)


models = {kind.lower(): model(kind) for kind in ("UINT8", "INT32", "FP32")} | {"zero": model("FP32", "np.float32(0)")}
cases = {
    "300 as UINT8": ("uint8", "UINT8", [1, 1], [300], [44]),
    "3000000000 as INT32": ("int32", "INT32", [1, 1], [3000000000], [-1294967296]),
    "1.7 as INT32": ("int32", "INT32", [1, 1], [1.7], "status 500"),
    "[[1, 2, 3], [4]] as 2 x 2": ("fp32", "FP32", [2, 2], [[1, 2, 3], [4]], [1, 2, 3, 4]),
    "an answer of 0 / 0": ("zero", "FP32", [1, 1], [0], "NaN is not JSON"),
    "an answer of 1 / 0": ("zero", "FP32", [1, 1], [1], "Infinity is not JSON"),
}
with triton(models) as server:
    seen = {case: ask(server.http, *words[:4]) for case, words in cases.items()}
for case, answer in seen.items():
    print(f"tritonserver 2.51.0, {case}: {answer}")
sys.exit(seen != {case: words[4] for case, words in cases.items()})
PYTHON
python ask.py
