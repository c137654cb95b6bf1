"""The source of `model.dali` beside it, which is what Triton's dali backend loads.

    python dali.py    # write model.dali again, with the DALI that this Python has

`build` does that too. Without a model.dali the backend runs this file by itself when it loads the model.
`preprocess/` beside it is a copy of the project's one definition; `pipeline.json` says for which detector.
"""

import json
import sys
from pathlib import Path
from typing import Any

from nvidia.dali import pipeline_def
from nvidia.dali._utils import dali_trace
from nvidia.dali.plugin.triton import autoserialize

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # the backend runs this file from somewhere else

from preprocess.pipeline import declared, preprocess_graph  # noqa: E402

SETTINGS = json.loads((HERE / "pipeline.json").read_text())

# An operator's origin would go into the pipeline, and this server's paths into error messages.
dali_trace.set_tracing(enabled=False)


@autoserialize
@pipeline_def(
    batch_size=SETTINGS["max_batch"],
    num_threads=SETTINGS["threads"],
    device_id=None,  # the backend sets the instance's
    seed=0,
    **declared(SETTINGS.get("pixels", "uint8")),
)
def pipeline() -> Any:
    """Decode, resize and pad on the GPU: `image`, `letterbox`, in this order."""
    names = ("size", "fill", "resize", "pixels", "decoder")
    return preprocess_graph(**{name: SETTINGS[name] for name in names if name in SETTINGS})


if __name__ == "__main__":
    pipeline().serialize(filename=str(HERE / "model.dali"))
