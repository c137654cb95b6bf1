"""The training loop: from a data set to a checkpoint, resumable at every iteration.

    result = train(Path("model.pth"), spec, dataset, TrainConfig(iterations=1000), on_progress=print)

The checkpoint is written every so often, at the end, and when the run is interrupted; a run that finds its own
checkpoint goes on from there and ends with the weights an uninterrupted one would have, wherever it was killed.
Started by torchrun it is one process of many, with its part of every batch. It prints nothing.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import torch

from retinaserve.training.checkpoint import Checkpoint, load, save
from retinaserve.training.data.dataset import CocoDataset
from retinaserve.training.data.loaders import training_batches
from retinaserve.training.data.stream import Batch
from retinaserve.training.errors import UserError
from retinaserve.training.files import remove_leftovers
from retinaserve.training.model import build_model
from retinaserve.training.model.retinanet import RetinaNet
from retinaserve.training.spec import DetectorSpec
from retinaserve.training.trainer.distributed import Team, team
from retinaserve.training.trainer.plots import draw_batch, draw_predictions
from retinaserve.training.trainer.progress import Meter, Metrics, Progress, metrics_path
from retinaserve.training.trainer.run import Run, all_anchors
from retinaserve.training.trainer.settings import Precision, TrainConfig
from retinaserve.training.trainer.validate import Scores, check, predict, score

__all__ = ["Precision", "TrainConfig", "TrainResult", "all_anchors", "interruptible", "train"]


@dataclass(frozen=True)
class TrainResult:
    """What a run did."""

    iteration: int  # of the checkpoint
    trained: int  # iterations of this run: none if the checkpoint was complete
    seconds: float
    interrupted: bool
    last: Progress | None
    scores: Scores | None = None  # of this run's last validation


def train(
    path: Path,
    spec: DetectorSpec,
    dataset: CocoDataset,
    config: TrainConfig,
    *,
    device: str | None = None,
    validation: CocoDataset | None = None,
    prepare: Callable[[RetinaNet], object] | None = None,
    on_progress: Callable[[Progress], object] = lambda _: None,
    on_scores: Callable[[int, Scores], object] = lambda *_: None,
) -> TrainResult:
    """Train into the checkpoint at `path`, or go on with the one that is there.

    Beside it are `<stem>.metrics.jsonl` and `<stem>.train_batch.jpg`, and with a validation set
    `<stem>.val_predictions.jpg` and the best checkpoint so far, `<stem>.best.pth`. `prepare` may put other weights
    into the network of a run that begins. SIGINT and SIGTERM end the run after the current iteration, with
    everything saved. Of several processes only the first writes and is called back. Raises UserError for a data
    set without boxes, for a checkpoint of another detector, and when the loss stops being a number.
    """
    if not dataset.box_count:
        raise UserError("the data set has no boxes to learn", "annotations with iscrowd 0 are expected")
    if validation is not None:
        check(validation, spec)
    with team() as us, interruptible() as interrupted:
        # A call of its own, for its variables have to be gone when the team parts.
        return _train(
            path, spec, dataset, config, us, device, validation, prepare, on_progress, on_scores, interrupted
        )


def _train(
    path: Path,
    spec: DetectorSpec,
    dataset: CocoDataset,
    config: TrainConfig,
    us: Team,
    device: str | None,
    validation: CocoDataset | None,
    prepare: Callable[[RetinaNet], object] | None,
    on_progress: Callable[[Progress], object],
    on_scores: Callable[[int, Scores], object],
    interrupted: Callable[[], bool],
) -> TrainResult:
    where = torch.device(device or (f"cuda:{us.local}" if torch.cuda.is_available() else "cpu"))
    # The first process reads, for on another machine the file may be missing.
    found = us.share(load(path) if us.leads and path.exists() else None)
    run = Run(spec, config, where, us, prepare=None if found else prepare)
    start = run.restore(found) if found else 0
    files = _Files(path, keep=start) if us.leads else None
    started, iteration, saved, last, scores = time.monotonic(), start, start, None, None
    meter = Meter(config.iterations, config.batch, start)
    batches = training_batches(dataset, spec, config.stream(us.rank, us.world), first=start)
    stopping = False
    while iteration < config.iterations and not stopping:
        with meter.waiting():
            batch = next(batches)
        if iteration == start and files:
            files.show_batch(batch, spec)
        meter.add(run.step(batch, iteration))
        iteration += 1
        complete = iteration == config.iterations
        if iteration % config.report_every == 0 or complete:
            last = meter.report(iteration, config.lr_at(iteration - 1))
            if files:
                files.metrics.append(last)
                on_progress(last)
        if validation is not None and (iteration % config.val_every == 0 or complete):
            # Before the checkpoint: one that is killed in between does both again.
            with meter.apart():
                scores = _validate(run, validation, iteration, files)
            if files:
                on_scores(iteration, scores)
        if files and iteration % config.save_every == 0:
            with meter.apart():
                save(path, run.checkpoint(iteration))
            saved = iteration
        stopping = bool(us.sum(torch.tensor(float(interrupted()), device=where)))
    if files and (iteration > saved or not path.exists()):
        save(path, run.checkpoint(iteration))
    stopped = stopping and iteration < config.iterations
    return TrainResult(iteration, iteration - start, time.monotonic() - started, stopped, last, scores)


class _Files:
    """What a run writes beside its checkpoint."""

    def __init__(self, path: Path, *, keep: int) -> None:
        for file in (path, path.with_suffix(".best.pth"), metrics_path(path)):
            remove_leftovers(file)
        self.metrics = Metrics(metrics_path(path), keep=keep)
        self.best = path.with_suffix(".best.pth")
        self.batch = path.with_suffix(".train_batch.jpg")
        self.found = path.with_suffix(".val_predictions.jpg")

    def show_batch(self, batch: Batch, spec: DetectorSpec) -> None:
        draw_batch(batch, spec.classes).save(self.batch)


def _validate(run: Run, dataset: CocoDataset, iteration: int, files: _Files | None) -> Scores:
    """Score the weights that are served, each process a part of the pictures."""
    us: Team = run.us
    with torch.random.fork_rng(devices=[]):  # validating changes nothing that training draws
        model = build_model(run.spec).to(run.device)
    model.load_state_dict(run.weights())
    part = range(us.rank, len(dataset), us.world)
    own = predict(model.eval(), run.spec, dataset, part, precision=run.precision)
    found = {image_id: each for some in us.gather(own) for image_id, each in some.items()}
    scores = us.share(score(dataset, run.spec, found) if us.leads else None)
    assert scores is not None
    better, run.best = scores.ap > run.best, max(scores.ap, run.best)
    if files:
        files.metrics.append_scores(iteration, asdict(scores))
        draw_predictions(dataset, run.spec, found).save(files.found)
        if better:
            save(files.best, Checkpoint(run.spec, run.weights(), iteration))
    return scores


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a question that can be asked; a second one ends the process."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: its owner handles signals
        previous = {}
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
