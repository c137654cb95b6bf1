"""The shortest road to a picture with boxes: the demo without its training, from the checkpoint that comes along.

    quickstart(Path("runs/quickstart"))     # the folder of the annotated pictures

It draws pictures that the checkpoint was not trained on, exports and builds, and asks a real Triton. It measures
and scores nothing: that is what the whole demo does.
"""

import shutil
from pathlib import Path

from retinaserve.scripts.demo.demo import Demo
from retinaserve.training.errors import UserError

# Made by `make checkpoint`: what the demo trains, without the state of its optimizer.
CHECKPOINT = Path(__file__).parents[2] / "examples" / "shapes.pth"
# The demo trains with seed 0; neighbouring seeds share no picture.
PICTURES = ("--train", 4, "--val", 12, "--seed", 1)
SCORE = 0.5  # what is drawn; the scores of so small a network are spread wide


def quickstart(root: Path, checkpoint: Path = CHECKPOINT) -> Path:
    """Run all steps under `root` and return where the annotated pictures are. Raises UserError."""
    if not checkpoint.is_file():
        raise UserError(
            f"{checkpoint}: no such checkpoint", "it comes with a clone; `retinaserve demo` trains one"
        )
    demo = Demo(root)
    root.mkdir(parents=True, exist_ok=True)
    predictions = root / "predictions"
    with demo.step("draw", "Draw pictures"):
        demo.run("data", "shapes", root / "data", "--force", *PICTURES)
    with (
        demo.serve(demo.build(checkpoint)) as server,
        demo.step("predict", "Send it the pictures, draw what it answers"),
    ):
        shutil.rmtree(predictions, ignore_errors=True)
        to = ("--server", server.grpc_url, "--output", predictions)
        demo.run("predict", demo.val / "images", *to, "--score", SCORE, "--quiet")
    return predictions
