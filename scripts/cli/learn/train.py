"""`train`: from labelled images to a checkpoint, by the predecessor's flags. `profile`: where its time goes."""

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from retinaserve.scripts.cli.options import (
    COUNT,
    PATH,
    POSITIVE,
    TileSize,
    also_json_option,
    config_option,
    cut_options,
    labels_options,
    setting_options,
    use_config,
    val_options,
)
from retinaserve.scripts.cli.output import bar, name_next, note, warn
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import write_json
from retinaserve.training.spec import STRIDES, Design, Network
from retinaserve.training.trainer.config import TrainConfig

if TYPE_CHECKING:
    from retinaserve.training.data.dataset import CocoDataset
    from retinaserve.training.trainer.preset import Choice
    from retinaserve.training.trainer.progress import Progress
    from retinaserve.training.trainer.validate import Scores

PRESETS = {"fast": "fast-n", "fast-n": "fast-n", "fast-s": "fast-s"}  # recipes
FITTED = "retinaserve.train.fitted"  # names of options, in the context
NOT_RECORDED = ("model", "override", "preset")  # what a preset chose is recorded


def use_preset(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Take the recipe that a preset stands for: the callback of an eager --preset."""
    if value is not None:
        use_config(context, parameter, Path(PRESETS[value]))
    return value


class ManyMilestones(click.Command):
    """A command that takes `--milestones 60000 80000`, as the predecessor does, besides the option repeated."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option before every number that follows it."""
        words: list[str] = []
        for word in args:
            after_number = len(words) > 1 and words[-2] == "--milestones" and words[-1].isdigit()
            words += ["--milestones", word] if after_number and word.isdigit() else [word]
        return super().parse_args(ctx, words)


@click.command(cls=ManyMilestones)
@click.argument("model", type=PATH)
@config_option
@click.option(
    "--preset",
    type=click.Choice(PRESETS),
    is_eager=True,
    callback=use_preset,
    help="A small network for CPUs, with all that fits it to the labels; flags override what it chooses.",
)
@labels_options
@val_options
@click.option("--classes", type=COUNT, help="How many classes the annotation file should have, as a check.")
@setting_options(Network)
@setting_options(Design)
@click.option(
    "--fine-tune",
    type=PATH,
    help="Checkpoint to start from, or fast-n, which comes along; what doesn't fit is left out.",
)
@setting_options(TrainConfig)
@click.option(
    "--value-range",
    type=click.IntRange(0, 65535),
    nargs=2,
    metavar="LOW HIGH",
    help="Of images with more than 8 bits: what is black and what is white; their depth's range by default.",
)
@click.option(
    "--tile",
    type=TileSize(),
    metavar="auto|H,W",
    help="Train on tiles of the images, cut into MODEL.tiles; auto: of the labels' sizes.",
)
@cut_options
@click.option("--schedule", type=POSITIVE, default=1.0, help="Multiplies --iters and --milestones.")
@click.option("--logdir", type=PATH, help="Also write the numbers for TensorBoard, into this folder.")
@click.option("--override", is_flag=True, help="Start afresh where MODEL exists, instead of going on with it.")
@click.pass_context
def train(context: click.Context, /, model: Path, **options: Any) -> None:
    """Train a detector into the checkpoint MODEL, or go on with the MODEL that is there.

    Ctrl-C saves and stops; the same command goes on. Beside MODEL.pth are its config.yaml, environment.json,
    metrics.jsonl, results.png, labels.png and train_batch.jpg, and with a validation set val_predictions.jpg and
    the best checkpoint. To train on several GPUs or machines, start the same command with torchrun.
    """
    from retinaserve.scripts.cli.learn.console import (
        Line,
        announce,
        announce_changes,
        announce_labels,
        announce_result,
    )
    from retinaserve.training.check.checks import preflight
    from retinaserve.training.checkpoint import load
    from retinaserve.training.data.dataset import CocoDataset, describe_labels
    from retinaserve.training.trainer.distributed import process_group
    from retinaserve.training.trainer.progress import (
        metrics_path,
        plot_labels,
        plot_results,
        read_metrics,
        read_scores,
    )
    from retinaserve.training.trainer.record import save_record
    from retinaserve.training.trainer.start import detector_to_train, find_start, initialise
    from retinaserve.training.trainer.trainer import Trainer

    if options["preset"] and context.get_parameter_source("config") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--preset is a recipe of its own: leave out --config")
    if model.suffix != ".pth":
        raise UserError(f"{model}: a file name that ends in .pth is expected", code=Exit.USAGE)
    fine_tune: Path | None = options["fine_tune"] and find_start(options["fine_tune"])
    results = model.with_suffix(".results.png")

    def plot() -> bool:
        metrics = metrics_path(model)
        return plot_results(read_metrics(metrics), read_scores(metrics), results)

    with process_group() as group:
        main = group.is_main_process
        source = group.broadcast({**options, **_tiles(model, options)} if main and options["tile"] else options)
        assert source is not None
        images, annotations, val_annotations = source["images"], source["annotations"], source["val_annotations"]
        val_images = source["val_images"]
        if main:
            preflight(images, annotations, val_images, val_annotations, warn=warn)
        dataset = CocoDataset(images, annotations)
        if options["classes"] not in (None, len(dataset.classes)):
            raise UserError(
                f"{annotations} has {len(dataset.classes)} classes, not {options['classes']}",
                "classes come from the annotation file; --classes only checks their number",
            )
        validation = CocoDataset(val_images or images, val_annotations, split="val") if val_annotations else None
        if main and options["override"]:
            model.unlink(missing_ok=True)
        begins = group.broadcast(not model.exists())
        if options["preset"]:
            for choice in group.broadcast(_fit(context, model, options, dataset) if main else None) or []:
                options.update(choice.settings)
                if main:
                    note(f"{options['preset']}: {choice}")
        config = TrainConfig.from_flags(options)
        spec = group.broadcast(
            detector_to_train(model, dataset, {**_chosen(context, options), "tile": source["tile"]}, fine_tune)
            if main
            else None
        )
        assert spec is not None
        line = Line(enabled=main)
        board = _board(options["logdir"]) if main else None
        if main:
            announce(dataset, spec, config, processes=group.world_size, lr_given=options["lr"] is not None)
            statistics = describe_labels(dataset, spec)
            announce_labels(statistics)
            model.parent.mkdir(parents=True, exist_ok=True)
            plot_labels(statistics, spec, model.with_suffix(".labels.png"))
            if not begins:
                announce_changes(load(model).training, config)
            recorded = {name: value for name, value in options.items() if name not in NOT_RECORDED}
            save_record(model, recorded, {"spec": json.loads(spec.to_json()), "training": asdict(config)})

        def prepare(network: Any) -> None:
            assert fine_tune
            report = initialise(network, fine_tune)
            if main:
                note(str(report))

        def on_progress(progress: "Progress") -> None:
            line.show(progress)
            if board:
                board(progress.iteration, asdict(progress))

        def on_scores(iteration: int, scores: "Scores") -> None:
            line.score(iteration, scores)
            plot()
            if board:
                board(iteration, asdict(scores))

        # Without a name for the trainer: it has to be gone before the process group is.
        result = Trainer(spec, config, group=group, prepare=prepare if fine_tune and begins else None).fit(
            model, dataset, validation=validation, on_progress=on_progress, on_scores=on_scores
        )
        if not main:
            return
    line.end()
    plotted = plot()
    if result.interrupted:
        note(f"{model}: stopped and saved at iteration {result.iteration} of {config.iterations}")
        name_next("the same command goes on from there")
        sys.exit(130)
    announce_result(model, result, config, validated=len(validation) if validation else 0)
    if plotted:
        click.echo(f"{results}: losses and scores")
    name_next(shlex.join(["retinaserve", "export", str(model), str(model.with_suffix(".onnx"))]))


def _fit(context: click.Context, model: Path, options: dict[str, Any], dataset: "CocoDataset") -> "list[Choice]":
    """Return what a preset chooses for a set, apart from what was given."""
    from retinaserve.training.checkpoint import load
    from retinaserve.training.trainer.preset import Choice, fit

    given = {name for name in options if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    if model.exists():  # which goes on as it is, whatever images have come since
        spec = load(model).spec
        (left, _, right, _), *_ = spec.anchors[0]
        # Rounded, for in float32 a side of 3.3 strides is 3.2999999.
        own = {"size": spec.size, "anchor_size": round((right - left) / spec.strides[0], 5)}
        options |= {name: value for name, value in own.items() if name not in given}
        given |= own.keys()
    choices: list[Choice] = list(fit(dataset, options, given))
    context.meta[FITTED] = {name for choice in choices for name in choice.settings}
    return choices


def _tiles(model: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Cut the sets beside the model; return the tile, and the options that name the sets instead."""
    from retinaserve.training.data.dataset import CocoDataset
    from retinaserve.training.data.tiling import Cut, suitable_tile, tile_dataset

    tile: tuple[int, int] | None = None if options["tile"] == "auto" else options["tile"]
    changed: dict[str, Any] = {}
    for prefix in ("", "val_"):
        annotations, images = options[f"{prefix}annotations"], options[f"{prefix}images"] or options["images"]
        if not annotations:
            continue
        dataset = CocoDataset(images, annotations, split="val" if prefix else "train")
        folder = model.with_suffix(".tiles") / f"{prefix}set"
        tile = tile or suitable_tile(dataset, size=options["size"], anchor=STRIDES[0] * options["anchor_size"])
        cut = Cut(tile, options["overlap"], options["visible"], options["empty"])
        with bar(len(dataset), "cutting") as shown:
            changed[f"{prefix}annotations"] = tile_dataset(dataset, folder, cut, on_image=shown.update)
        changed[f"{prefix}images"] = folder / "images"
    assert tile  # of --annotations, which are required
    note(f"tiles of {tile[0]} x {tile[1]} pixels in {model.with_suffix('.tiles')}")
    return {**changed, "tile": tile}


def _chosen(context: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """Return the design that somebody chose: a flag, or a value of a file that is not the default.

    The record of a run, which --config reads, has the defaults in it, too.
    """
    defaults = {**asdict(Network()), **asdict(Design())}
    design = {
        name: options[name]
        for name, default in defaults.items()
        if name in options
        and (
            options[name] != default
            or name in context.meta.get(FITTED, ())
            or context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        )
    }
    return {**design, **{name: options[name] for name in ("resize", "max_size", "value_range")}}


def _board(folder: Path | None) -> Callable[[int, dict[str, float]], None] | None:
    """Return what writes numbers for TensorBoard. Raises UserError where it is not installed."""
    if folder is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--logdir needs TensorBoard", "pip install tensorboard", code=Exit.USAGE) from None
    writer: Any = SummaryWriter(folder)

    def write(iteration: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, iteration)
        writer.flush()

    return write


@click.command()
@labels_options
@setting_options(Network, names=("backbone", "width", "fpn_channels"), backbone="resnet18")
@setting_options(Design, names=("size",))
@click.option("--batch", type=COUNT, multiple=True, default=(1, 8, 32), help="Batches of the loaders; repeat it.")
@click.option("--train-batch", type=COUNT, default=8, help="Batch of the training steps.")
@setting_options(TrainConfig, names=("augment", "workers"), augment="multiscale")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=5.0, help="Measured time per row.")
@also_json_option
def profile(
    images: Path,
    annotations: Path,
    batch: tuple[int, ...],
    train_batch: int,
    augment: str,
    workers: int,
    seconds: float,
    json_path: Path | None,
    **design: Any,
) -> None:
    """Compare loaders and precisions: images per second, and the share of time spent waiting for data."""
    from retinaserve.training.data.dataset import CocoDataset
    from retinaserve.training.spec import DetectorSpec
    from retinaserve.training.trainer.profile import profile as measure

    dataset = CocoDataset(images, annotations)
    spec = DetectorSpec.create(dataset.classes, **design)
    config = TrainConfig(1, augment=augment, workers=workers)
    rows = []
    click.echo("what     loader  batch  precision    img/s  data wait")
    for row in measure(dataset, spec, config, batches=batch, train_batch=train_batch, seconds=seconds):
        rows.append(asdict(row))
        click.echo(
            f"{row.what:<9}{row.loader:<7}{row.batch:>5}  {row.precision or '-':<10}"
            f"{row.images_per_second:>9.1f}{row.data_wait:>11.0%}"
        )
    if json_path:
        write_json(json_path, rows)
    name_next("retinaserve train MODEL.pth --loader ... --precision ...")
