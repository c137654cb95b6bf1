"""`train`: from a COCO data set to a checkpoint. The flags of the predecessor keep their names."""

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from retinaserve.scripts.cli.options import COUNT, PATH
from retinaserve.scripts.cli.output import name_next
from retinaserve.training.data.augment import MODES
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.spec import BACKBONES, NORMS
from retinaserve.training.trainer.config import save_record, use_config

if TYPE_CHECKING:
    from retinaserve.training.data.dataset import CocoDataset
    from retinaserve.training.model.retinanet import RetinaNet
    from retinaserve.training.spec import DetectorSpec
    from retinaserve.training.trainer.distributed import Team
    from retinaserve.training.trainer.progress import Progress
    from retinaserve.training.trainer.settings import TrainConfig
    from retinaserve.training.trainer.validate import Scores

SHARE = click.FloatRange(min=0)
POSITIVE = click.FloatRange(min=0, min_open=True)
DECAYS = {"adamw": 0.01, "sgd": 1e-4}


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
@click.option(
    "--config",
    type=PATH,
    is_eager=True,
    expose_value=False,
    callback=use_config,
    help="YAML file whose keys are flags, or the name of a recipe; flags override it.",
)
@click.option("--images", type=PATH, default=Path(), help="Folder that the annotation file's names start from.")
@click.option("--annotations", type=PATH, required=True, help="COCO annotation file; the classes are its own.")
@click.option("--val-images", type=PATH, help="Folder of the validation pictures.  [default: that of --images]")
@click.option("--val-annotations", type=PATH, help="COCO file to validate on while training.")
@click.option("--val-iters", type=COUNT, default=1000, help="Iterations between validations.")
@click.option("--classes", type=COUNT, help="How many classes the annotation file should have, as a check.")
@click.option(
    "--backbone", type=click.Choice(tuple(BACKBONES)), default="resnet50", help="What finds the features."
)
@click.option("--width", type=COUNT, default=64, help="Of the backbone; 64 is the published network.")
@click.option("--fpn-channels", type=COUNT, default=256, help="Channels of pyramid and heads.")
@click.option(
    "--head-depth", type=click.IntRange(min=0), default=4, help="Convolutions before each head's output."
)
@click.option("--norm", type=click.Choice(NORMS), default="batch", help="Normalisation of pyramid and heads.")
@click.option("--anchor-size", type=POSITIVE, default=4.0, help="In strides.")
@click.option(
    "--size", type=click.IntRange(min=32), nargs=2, default=(512, 512), metavar="H W", help="Input of the network."
)
@click.option("--resize", type=COUNT, help="Train at this shorter side instead of letterboxed into --size.")
@click.option("--max-size", type=COUNT, default=1333, help="The longest side, with --resize.")
@click.option(
    "--jitter", type=COUNT, nargs=2, metavar="MIN MAX", help="Range of the shorter side, from multiscale on."
)
@click.option("--fine-tune", type=PATH, help="Checkpoint to start from; what doesn't fit is left out.")
@click.option(
    "--freeze",
    type=click.IntRange(0, 5),
    default=0,
    help="Stages of the backbone that don't learn, from the stem.",
)
@click.option("--iters", type=COUNT, default=90000, help="Iterations, counted from the first run.")
@click.option("--batch", type=COUNT, default=16, help="Images of an iteration, of all processes together.")
@click.option("--optimizer", type=click.Choice(tuple(DECAYS)), default="adamw", help="What takes the steps.")
@click.option(
    "--lr",
    type=POSITIVE,
    help="Highest learning rate.  [default: adamw 0.002, sgd 0.01 at 16 images, in proportion]",
)
@click.option("--warmup", type=click.IntRange(min=0), default=1000, help="Iterations of rising learning rate.")
@click.option("--milestones", type=COUNT, multiple=True, help="Where --gamma applies; without it, a cosine.")
@click.option("--gamma", type=POSITIVE, default=0.1, help="What the learning rate is multiplied by.")
@click.option("--schedule", type=POSITIVE, default=1.0, help="Multiplies --iters and --milestones.")
@click.option(
    "--weight-decay", "--regularization-l2", type=SHARE, help="Of convolutions.  [default: adamw 0.01, sgd 0.0001]"
)
@click.option("--clip", type=POSITIVE, default=10.0, help="Norm that the gradient is cut to.")
@click.option("--box-weight", type=SHARE, default=1.0, help="Of the box loss beside the class loss.")
@click.option("--giou", is_flag=True, help="Generalised IoU for boxes, instead of smooth L1 of their deltas.")
@click.option(
    "--ema", type=click.FloatRange(0, 1, max_open=True), default=0.0, help="Decay of the weights' average."
)
@click.option(
    "--batch-norm",
    type=click.Choice(("local", "sync", "frozen")),
    default="sync",
    help="Batch norms: each process's, all processes', or the backbone's as they are.",
)
@click.option(
    "--augment", type=click.Choice(MODES), default="basic", help="Each does what those before it do, too."
)
@click.option("--loader", type=click.Choice(("torch", "dali")), default="torch", help="What reads the images.")
@click.option(
    "--workers", type=click.IntRange(min=0), default=0, help="Processes (DALI: threads) that read images."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Fixes weights, order and augmentation.")
@click.option(
    "--precision",
    type=click.Choice(("auto", "fp32", "bf16", "fp16")),
    default="auto",
    help="auto: bf16 or fp16 on a GPU, fp32 on a CPU.",
)
@click.option("--compile", is_flag=True, help="Compile the network with torch.compile.")
@click.option("--save-every", type=COUNT, default=1000, help="Iterations between checkpoints.")
@click.option("--logdir", type=PATH, help="Also write the numbers for TensorBoard, into this folder.")
@click.option("--override", is_flag=True, help="Start afresh where MODEL exists, instead of going on with it.")
@click.pass_context
def train(context: click.Context, /, model: Path, **options: Any) -> None:
    """Train a detector into the checkpoint MODEL, or go on with the MODEL that is there.

    Ctrl-C saves and stops; the same command goes on. Beside MODEL.pth are its config.yaml, environment.json,
    metrics.jsonl, results.png, labels.png and train_batch.jpg, and with a validation set val_predictions.jpg and
    the best checkpoint. To train on several GPUs or machines, start the same command with torchrun.
    """
    from retinaserve.scripts.cli.train_console import Line, announce, announce_changes, announce_labels, clock
    from retinaserve.training.check.checks import preflight
    from retinaserve.training.checkpoint import load
    from retinaserve.training.data.dataset import CocoDataset
    from retinaserve.training.data.label_statistics import describe_labels
    from retinaserve.training.trainer.distributed import team
    from retinaserve.training.trainer.loop import train as run
    from retinaserve.training.trainer.plots import plot_labels, plot_results
    from retinaserve.training.trainer.progress import metrics_path

    if model.suffix != ".pth":
        raise UserError(f"{model}: a file name that ends in .pth is expected", code=Exit.USAGE)
    config = _config(options)
    with team() as us:
        if us.leads:
            where = (options["images"], options["annotations"], options["val_images"], options["val_annotations"])
            preflight(*where, warn=lambda line: click.echo(line, err=True))
        dataset = CocoDataset(options["images"], options["annotations"])
        _expect_classes(dataset, options)
        validation = None
        if options["val_annotations"] is not None:
            validation = CocoDataset(options["val_images"] or options["images"], options["val_annotations"])
        spec = us.share(_spec(context, us, model, dataset, options) if us.leads else None)
        assert spec is not None
        live = Line(speaks=us.leads)
        board = _board(options["logdir"]) if us.leads else None
        if us.leads:
            announce(dataset, spec, config, world=us.world, lr_given=options["lr"] is not None)
            statistics = describe_labels(dataset, spec)
            announce_labels(statistics)
            model.parent.mkdir(parents=True, exist_ok=True)
            plot_labels(statistics, spec, model.with_suffix(".labels.png"))
            if model.exists():
                announce_changes(load(model).training, config)
            save_record(model, context, {"spec": json.loads(spec.to_json()), "training": asdict(config)})

        def on_progress(progress: "Progress") -> None:
            live.show(progress)
            if board:
                board(progress.iteration, asdict(progress))

        def on_scores(iteration: int, scores: "Scores") -> None:
            live.score(iteration, scores)
            plot_results(metrics_path(model), model.with_suffix(".results.png"))
            if board:
                board(iteration, asdict(scores))

        result = run(
            model,
            spec,
            dataset,
            config,
            validation=validation,
            prepare=_starting_from(options["fine_tune"], us),
            on_progress=on_progress,
            on_scores=on_scores,
        )
        if not us.leads:
            return
    live.end()
    results = model.with_suffix(".results.png")
    plotted = plot_results(metrics_path(model), results)
    if result.interrupted:
        click.echo(f"{model}: stopped and saved at iteration {result.iteration} of {config.iterations}", err=True)
        name_next("the same command goes on from there")
        sys.exit(130)
    if not result.trained:
        click.echo(f"{model}: already trained for {result.iteration} iterations; more with --iters", err=True)
    else:
        scored = f", AP {result.scores.ap:.3f}, AP50 {result.scores.ap50:.3f}" if result.scores else ""
        click.echo(f"{model}: {result.iteration} iterations in {clock(result.seconds)}{scored}")
    if plotted:
        click.echo(f"{results}: losses and scores")
    name_next(shlex.join(["retinaserve", "export", str(model), str(model.with_suffix(".onnx"))]))


def _config(options: dict[str, Any]) -> "TrainConfig":
    from retinaserve.training.trainer.schedule import scaled_rate
    from retinaserve.training.trainer.settings import TrainConfig

    factor: float = options["schedule"]

    def scheduled(iteration: int) -> int:
        return max(1, round(iteration * factor))

    decay = options["weight_decay"]
    same = "batch warmup clip box_weight augment seed workers precision save_every gamma optimizer ema giou freeze"
    return TrainConfig(
        scheduled(options["iters"]),
        lr=scaled_rate(options["optimizer"], options["batch"]) if options["lr"] is None else options["lr"],
        weight_decay=DECAYS[options["optimizer"]] if decay is None else decay,
        milestones=tuple(sorted(scheduled(milestone) for milestone in options["milestones"])),
        batch_norms=options["batch_norm"],
        shorter=options["resize"],
        longest=options["max_size"],
        val_every=options["val_iters"],
        compile=options["compile"],
        loader=options["loader"],
        jitter=options["jitter"],
        **{name: options[name] for name in same.split()},
    )


def _expect_classes(dataset: "CocoDataset", options: dict[str, Any]) -> None:
    if options["classes"] not in (None, len(dataset.classes)):
        raise UserError(
            f"{options['annotations']} has {len(dataset.classes)} classes, not {options['classes']}",
            "classes come from the annotation file; --classes only checks their number",
        )


def _spec(
    context: click.Context, us: "Team", model: Path, dataset: "CocoDataset", options: dict[str, Any]
) -> "DetectorSpec":
    """Return the detector to train: the checkpoint's, or a new one."""
    names = ("backbone", "width", "fpn_channels", "head_depth", "norm", "anchor_size", "size")
    design = {name: options[name] for name in names}
    given = {name: value for name, value in design.items() if _is_given(context, name, value)}
    if options["override"]:
        model.unlink(missing_ok=True)
    if model.exists():
        return _resumed(model, dataset, given)
    if options["resize"] and "size" not in given:
        side = -(-max(options["max_size"], options["resize"]) // 32) * 32
        design["size"] = (side, side)  # whatever was trained on fits into what is served
    return _new(dataset, design, given, options["fine_tune"])


def _is_given(context: click.Context, name: str, value: Any) -> bool:
    """Whether somebody chose a value; a run's own record has the defaults in it too."""
    source = context.get_parameter_source(name)
    default = next(each.default for each in context.command.params if each.name == name)
    return source is ParameterSource.COMMANDLINE or (source is ParameterSource.DEFAULT_MAP and value != default)


def _new(
    dataset: "CocoDataset", design: dict[str, Any], given: dict[str, Any], fine_tune: Path | None
) -> "DetectorSpec":
    """Return a new detector's spec; one that is fine-tuned has the network and anchors it starts from."""
    from retinaserve.training.checkpoint import Backbone, Checkpoint, load, read
    from retinaserve.training.spec import DetectorSpec

    options = {**design, "base_size": design["anchor_size"]}
    del options["anchor_size"]
    if fine_tune is None:
        return DetectorSpec.create(dataset.classes, category_ids=dataset.category_ids, **options)
    start = read(fine_tune)
    if isinstance(start, Backbone):
        options.update({"backbone": start.name, "width": start.width} | _of_network(given))
    spec = DetectorSpec.create(dataset.classes, category_ids=dataset.category_ids, **options)
    if isinstance(start, Backbone):
        return spec
    if not isinstance(start, Checkpoint):
        start = load(fine_tune)  # says what it is not
    # The network's sizes that were asked for stand, even if little is left to start from.
    network = replace(start.spec.network, **_of_network(given))
    anchors = spec.anchors if "anchor_size" in given else start.spec.anchors
    return replace(
        start.spec,
        classes=spec.classes,
        category_ids=spec.category_ids,
        size=spec.size,
        network=network,
        anchors=anchors,
    )


def _of_network(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in ("anchor_size", "size")}


def _resumed(model: Path, dataset: "CocoDataset", given: dict[str, Any]) -> "DetectorSpec":
    """Return the checkpoint's spec. Raises UserError if the data or an option asks for another detector."""
    from retinaserve.training.anchors import base_anchors
    from retinaserve.training.checkpoint import load

    spec = load(model).spec
    afresh = "name another file, or start afresh with --override"
    if (dataset.classes, dataset.category_ids) != (spec.classes, spec.category_ids):
        raise UserError(
            f"{model} was trained on other classes: {', '.join(spec.classes)}; not {', '.join(dataset.classes)}",
            afresh,
        )
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if name == "anchor_size":
            if not (base_anchors(spec.strides, base_size=value) == spec.anchor_table).all():
                raise UserError(f"{model} has other anchors than {flag} {value:g}", afresh)
            continue
        trained = spec.size if name == "size" else getattr(spec.network, name)
        if trained != (tuple(value) if name == "size" else value):
            shown = " ".join(str(part) for part in trained) if name == "size" else trained
            raise UserError(f"{model} was trained with {flag} {shown}", afresh)
    return spec


def _starting_from(path: Path | None, us: "Team") -> "Callable[[RetinaNet], object] | None":
    """Return what puts a checkpoint's weights into a fresh network, and says which."""
    if path is None:
        return None

    def prepare(model: "RetinaNet") -> None:
        from retinaserve.training.trainer.finetune import initialise

        report = initialise(model, path)
        if us.leads:
            click.echo(str(report), err=True)

    return prepare


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
