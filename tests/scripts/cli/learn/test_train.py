import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from retinaserve.scripts.cli.learn.console import crowded, describe
from retinaserve.scripts.cli.learn.train import train
from retinaserve.scripts.shapes.draw import DataSet, draw_dataset
from retinaserve.training.checkpoint import load
from retinaserve.training.errors import UserError
from retinaserve.training.trainer.progress import Progress

NETWORK = ["--backbone", "resnet18", "--width", "8", "--fpn-channels", "8", "--head-depth", "1"]
SMALL = [*NETWORK, "--size", "64", "64", "--batch", "2", "--warmup", "2"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return draw_dataset(tmp_path_factory.mktemp("shapes"), images=5, seed=0)


def invoke(model: Path, shapes: DataSet, *flags: str) -> Result:
    return CliRunner().invoke(
        train, [str(model), "--images", str(shapes.images), "--annotations", str(shapes.annotations), *flags]
    )


def test_it_trains_goes_on_and_starts_afresh(tmp_path: Path, shapes: DataSet) -> None:
    model = tmp_path / "model.pth"
    first = invoke(model, shapes, *SMALL, "--iters", "2", "--anchor-size", "3")
    assert first.exit_code == 0, first.output
    assert "2 iterations in" in first.stdout and f"next: retinaserve export {model}" in first.stderr
    spec = load(model).spec
    assert spec.size == (64, 64) and spec.network.norm == "batch" and spec.network.width == 8
    assert (spec.classes[3], spec.category_ids) == ("star", (1, 2, 3, 5, 8, 13))
    assert spec.anchors[0][1] == (-8, -8, 16, 16)  # 3 strides of 8 around the middle of the cell
    with Image.open(tmp_path / "model.results.png") as curves:
        assert curves.width > 600
    # Options left out are the checkpoint's.
    assert invoke(model, shapes, "--batch", "2", "--warmup", "2", "--iters", "3").exit_code == 0
    assert load(model).iteration == 3
    again = invoke(model, shapes, "--iters", "3")
    assert again.exit_code == 0 and "already trained for 3 iterations" in again.stderr
    afresh = invoke(model, shapes, *SMALL, "--iters", "1", "--override")
    assert afresh.exit_code == 0 and load(model).iteration == 1


def test_a_preset_fits_itself_to_the_labels_and_says_so(tmp_path: Path, shapes: DataSet) -> None:
    model = tmp_path / "model.pth"
    given = ["--preset", "fast", "--size", "64", "96", "--iters", "2", "--batch", "2", "--width", "16"]
    first = invoke(model, shapes, *given)
    assert first.exit_code == 0, first.output
    spec = load(model).spec
    assert (spec.size, spec.network.backbone, spec.network.width) == ((64, 96), "fast-n", 16)
    assert len(spec.strides) == 3 and spec.anchors_per_cell == 1 and spec.network.int8_outputs
    side = spec.anchors[0][0][2] - spec.anchors[0][0][0]
    assert f"fast: --anchor-size {side / 8:g}: " in first.stderr and "fast: --precision " in first.stderr
    assert "fast: --size" not in first.stderr  # which was given
    # It goes on with more images than it began with, and the record repeats the run without the preset.
    more = draw_dataset(tmp_path / "more", images=7, seed=1)
    again = invoke(model, more, "--preset", "fast", "--iters", "3", "--batch", "2", "--width", "16")
    assert again.exit_code == 0 and load(model).iteration == 3, again.output
    record = ["--config", str(tmp_path / "model.config.yaml")]
    repeated = CliRunner().invoke(train, [str(tmp_path / "again.pth"), *record])
    assert repeated.exit_code == 0 and load(tmp_path / "again.pth").spec.anchors == spec.anchors
    for both in ([*record, "--preset", "fast"], ["--preset", "fast", *record]):
        refused = CliRunner().invoke(train, [str(model), *both])
        assert refused.exit_code == 2 and "leave out --config" in refused.output


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, shapes: DataSet) -> Path:
    """A model of one iteration; tests must not train it further."""
    model = tmp_path_factory.mktemp("begun") / "model.pth"
    assert invoke(model, shapes, *SMALL, "--iters", "1").exit_code == 0
    return model


def refused(model: Path, data: DataSet, *flags: str) -> UserError:
    error = invoke(model, data, *flags).exception
    assert isinstance(error, UserError), error
    return error


def test_a_preset_does_not_go_on_with_another_design(tmp_path: Path, shapes: DataSet) -> None:
    model, same = tmp_path / "model.pth", ["--preset", "fast", "--batch", "2", "--width", "16", "--iters"]
    first = invoke(model, shapes, *same, "1", "--size", "64", "96", "--anchor-size", "3.3")
    assert first.exit_code == 0, first.output
    assert "trained with --size 64 96" in refused(model, shapes, *same, "2", "--size", "64", "64").message
    assert "other anchors than --anchor-size 7" in refused(model, shapes, *same, "2", "--anchor-size", "7").message
    again = invoke(model, shapes, *same, "2")
    assert again.exit_code == 0 and load(model).iteration == 2, again.exception


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--width", "16"], "was trained with --width 8"),
        (["--size", "64", "96"], "was trained with --size 64 64"),
        (["--anchor-size", "3"], "has other anchors than --anchor-size 3"),
        (["--norm", "none"], "was trained with --norm batch"),
    ],
)
def test_another_design_does_not_go_on(begun: Path, shapes: DataSet, flags: list[str], message: str) -> None:
    error = refused(begun, shapes, *flags, "--iters", "2")
    assert message in error.message and "--override" in error.hint


def test_it_validates_keeps_the_best_and_draws(tmp_path: Path, shapes: DataSet) -> None:
    model = tmp_path / "model.pth"
    flags = ["--val-annotations", str(shapes.annotations), "--val-iters", "2", "--ema", "0.9", "--giou"]
    flags += ["--augment", "photometric", "--loader", "dali", "--resize", "64", "--max-size", "90"]
    flags += ["--jitter", "48", "72"]
    flags += ["--milestones", "2", "3", "--schedule", "0.75", "--classes", "6", "--regularization-l2", "0.1"]
    result = invoke(model, shapes, *NETWORK, "--batch", "2", "--iters", "4", "--optimizer", "sgd", *flags)
    assert result.exit_code == 0, result.output
    assert "learning rate 0.00125 (0.01 x batch 2 / 16; --lr sets it)" in result.stderr
    assert "x 0.1 at 2, 2" in result.stderr, "4, 2 and 3 times 0.75"
    assert "validation at 2: AP 0.0" in result.stderr and ", AP 0.0" in result.stdout
    assert "bootstrap over" in result.stdout
    assert load(model).spec.size == (96, 96), "the longest side, in whole strides"
    assert load(tmp_path / "model.best.pth").iteration == 2 and not load(tmp_path / "model.best.pth").training
    for name in ("train_batch.jpg", "val_predictions.jpg", "results.png", "labels.png"):
        with Image.open(tmp_path / f"model.{name}") as picture:
            assert picture.width > 300
    config = json.loads(load(model).training["config"])
    assert (config["weight_decay"], config["jitter"], config["iterations"]) == (0.1, [48, 72], 3)


def test_it_says_what_changed_since_it_began(tmp_path: Path, begun: Path, shapes: DataSet) -> None:
    model = Path(shutil.copy(begun, tmp_path / "model.pth"))
    again = invoke(model, shapes, *SMALL, "--iters", "2", "--augment", "flip")
    assert "goes on with other settings: iterations 2 (was 1), augment flip (was basic)" in again.stderr
    other = refused(model, shapes, *SMALL, "--iters", "3", "--optimizer", "sgd")
    assert "was trained with --optimizer adamw" in other.message


def test_a_missing_tensorboard_is_named(tmp_path: Path, shapes: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # makes the import fail
    error = refused(tmp_path / "model.pth", shapes, *SMALL, "--logdir", str(tmp_path / "board"))
    assert "pip install tensorboard" in error.hint


def test_tensorboard_gets_the_numbers_of_metrics(tmp_path: Path, shapes: DataSet) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model, board = tmp_path / "model.pth", tmp_path / "board"
    result = invoke(model, shapes, *SMALL, "--iters", "2", "--logdir", str(board))
    assert result.exit_code == 0, result.output
    events = EventAccumulator(str(board)).Reload()
    (written,) = [json.loads(line) for line in (tmp_path / "model.metrics.jsonl").read_text().splitlines()]
    for name in ("cls_loss", "box_loss", "lr"):
        (scalar,) = events.Scalars(name)
        assert scalar.step == 2 and scalar.value == pytest.approx(written[name], rel=1e-3)


def test_a_compiled_network_learns_the_same(tmp_path: Path, shapes: DataSet) -> None:
    """The compiler's front is what can fail on our network; its C++ takes a minute.

    In a process of its own, as the compiler hooks itself into the interpreter for good.
    """
    program = (
        "import functools, torch; torch.compile = functools.partial(torch.compile, backend='aot_eager'); "
        "from retinaserve.scripts.cli.main import main; main()"
    )
    assert invoke(tmp_path / "plain.pth", shapes, *SMALL, "--iters", "2").exit_code == 0
    data = ["--images", str(shapes.images), "--annotations", str(shapes.annotations), *SMALL, "--iters", "2"]
    words = [sys.executable, "-c", program, "train", str(tmp_path / "compiled.pth"), *data, "--compile"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plain, compiled = load(tmp_path / "plain.pth").weights, load(tmp_path / "compiled.pth").weights
    assert plain.keys() == compiled.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(tensor, compiled[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--classes", "5"], "has 6 classes, not 5"),
        (["--jitter", "90", "40"], "jitter is (90, 40)"),
        (["--precision", "fp16"], "fp16 needs a GPU"),
    ],
    ids=["classes", "jitter", "fp16"],
)
def test_nonsense_is_refused(tmp_path: Path, shapes: DataSet, flags: list[str], message: str) -> None:
    assert message in refused(tmp_path / "model.pth", shapes, *SMALL, *flags).message


def test_a_set_that_would_train_wrong_is_refused(tmp_path: Path, shapes: DataSet) -> None:
    content = json.loads(shapes.annotations.read_text())
    content["annotations"][0]["category_id"] = 99
    (tmp_path / "other.json").write_text(json.dumps(content))
    other = DataSet(shapes.images, tmp_path / "other.json", 5, 0)
    error = refused(tmp_path / "model.pth", other, *SMALL)
    assert "data check" in error.hint and error.code == 3


def test_other_classes_do_not_go_on(tmp_path: Path, begun: Path, shapes: DataSet) -> None:
    content = json.loads(shapes.annotations.read_text())
    content["categories"][0]["name"] = "egg"
    (tmp_path / "other.json").write_text(json.dumps(content))
    other = DataSet(shapes.images, tmp_path / "other.json", 5, 0)
    assert "was trained on other classes: without ellipse" in refused(begun, other, "--iters", "2").message


def test_mistakes_are_answered_before_anything_is_written(tmp_path: Path, shapes: DataSet) -> None:
    wrong = refused(tmp_path / "model.onnx", shapes, "--iters", "1")
    assert "ends in .pth" in wrong.message and wrong.code == 2
    lost = CliRunner().invoke(train, [str(tmp_path / "m.pth"), "--annotations", str(tmp_path / "none.json")])
    assert isinstance(lost.exception, UserError) and "none.json" in lost.exception.message
    assert not list(tmp_path.iterdir())


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path, shapes: DataSet) -> None:
    model = tmp_path / "model.pth"
    flags = ["--images", str(shapes.images), "--annotations", str(shapes.annotations), *SMALL]
    command = "from retinaserve.scripts.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "train", str(model), *flags, "--iters", "100000", "--workers", "1"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    metrics, deadline = tmp_path / "model.metrics.jsonl", time.monotonic() + 120
    while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, errors = process.communicate(timeout=60)
    iteration = load(model).iteration
    assert process.returncode == 130 and iteration >= 20
    assert f"stopped and saved at iteration {iteration} of 100000" in errors and "Traceback" not in errors


def test_the_line_has_what_one_looks_for() -> None:
    line = describe(Progress(20, 1200, 0.5214, 0.25, 0.00182, 71.36, 0.034, 75.4, 8.92, 1.26))
    assert line == (
        "  20/1200  class 0.521  box 0.250  lr 1.82e-03  8.92 it/s  71.4 img/s  data wait 3%  1.3 GiB  ETA 1:15"
    )


@pytest.mark.parametrize(
    ("load", "cores", "threads", "expected"),
    [
        (0.0, 2, 2, False),
        (1.0, 2, 2, False),  # the step before this one
        (7.3, 2, 2, True),
        (7.3, 2, 1, False),  # nothing to wait for
        (20.0, 64, 32, False),
        (70.0, 64, 64, True),
    ],
)
def test_a_crowded_machine(load: float, cores: int, threads: int, expected: bool) -> None:
    assert crowded(load, cores, threads) is expected
