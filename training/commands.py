"""`train`: from a COCO data set to a checkpoint."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from training.augment import MODES
from training.errors import Exit, UserError
from training.spec import BACKBONES, NORMS

if TYPE_CHECKING:
    from training.dataset import CocoDataset
    from training.loop import TrainConfig
    from training.progress import Progress
    from training.spec import DetectorSpec

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("model", type=PATH)
@click.option("--images", type=PATH, default=Path(), help="Folder that the annotation file's names start from.")
@click.option("--annotations", type=PATH, required=True, help="COCO annotation file; the classes are its own.")
@click.option("--backbone", type=click.Choice(BACKBONES), default="resnet50", help="Depth of the ResNet.")
@click.option("--width", type=click.IntRange(min=1), default=64, help="Channels of the ResNet's stem.")
@click.option("--fpn-channels", type=click.IntRange(min=1), default=256, help="Channels of pyramid and heads.")
@click.option(
    "--head-depth", type=click.IntRange(min=0), default=4, help="Convolutions before each head's output."
)
@click.option("--norm", type=click.Choice(NORMS), default="batch", help="Normalisation of pyramid and heads.")
@click.option("--anchor-size", type=click.FloatRange(min=0, min_open=True), default=4.0, help="In strides.")
@click.option(
    "--size", type=click.IntRange(min=32), nargs=2, default=(512, 512), metavar="H W", help="Input of the network."
)
@click.option("--iters", type=click.IntRange(min=1), default=90000, help="Iterations, counted from the first run.")
@click.option("--batch", type=click.IntRange(min=1), default=16, help="Images of an iteration.")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), default=0.002, help="Highest learning rate.")
@click.option("--warmup", type=click.IntRange(min=0), default=1000, help="Iterations of rising learning rate.")
@click.option(
    "--box-weight", type=click.FloatRange(min=0), default=1.0, help="Of the box loss beside the class loss."
)
@click.option("--augment", type=click.Choice(MODES), default="basic", help="basic: flips, zooms, shifts, colours.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Fixes weights, order and augmentation.")
@click.option("--workers", type=click.IntRange(min=0), default=0, help="Processes that read images; 0: none.")
@click.option(
    "--precision",
    type=click.Choice(("auto", "fp32", "bf16", "fp16")),
    default="auto",
    help="auto: bf16 or fp16 on a GPU, fp32 on a CPU.",
)
@click.option("--save-every", type=click.IntRange(min=1), default=1000, help="Iterations between checkpoints.")
@click.option("--override", is_flag=True, help="Start afresh where MODEL exists, instead of going on with it.")
@click.pass_context
def train(
    context: click.Context,
    /,
    model: Path,
    images: Path,
    annotations: Path,
    iters: int,
    batch: int,
    lr: float,
    warmup: int,
    box_weight: float,
    augment: str,
    seed: int,
    workers: int,
    precision: Any,
    save_every: int,
    override: bool,
    **design: Any,
) -> None:
    """Train a detector into the checkpoint MODEL, or go on with the MODEL that is there.

    Ctrl-C saves and stops; the same command goes on. Beside MODEL.pth are MODEL.metrics.jsonl and
    MODEL.curves.png.
    """
    from training.dataset import CocoDataset
    from training.loop import TrainConfig
    from training.loop import train as run
    from training.plots import plot_losses
    from training.progress import metrics_path

    if model.suffix != ".pth":
        raise UserError(f"{model}: a file name that ends in .pth is expected", code=Exit.USAGE)
    dataset = CocoDataset(images, annotations)
    if override:
        model.unlink(missing_ok=True)
    spec = _resumed(model, dataset, _given(context, design)) if model.exists() else _new(dataset, design)
    config = TrainConfig(
        iters,
        batch=batch,
        lr=lr,
        warmup=warmup,
        box_weight=box_weight,
        augment=augment,
        seed=seed,
        workers=workers,
        precision=precision,
        save_every=save_every,
    )
    _announce(dataset, spec, config)
    live = Line()
    result = run(model, spec, dataset, config, on_progress=live.show)
    live.end()
    curves = model.with_suffix(".curves.png")
    plotted = plot_losses(metrics_path(model), curves)
    if result.interrupted:
        click.echo(f"{model}: stopped and saved at iteration {result.iteration} of {iters}", err=True)
        click.echo("next: the same command goes on from there", err=True)
        sys.exit(130)
    if not result.trained:
        click.echo(f"{model}: already trained for {result.iteration} iterations; more with --iters", err=True)
    else:
        click.echo(f"{model}: {result.iteration} iterations in {clock(result.seconds)}")
    if plotted:
        click.echo(f"{curves}: the losses")
    click.echo(f"next: retinaserve export {model} {model.with_suffix('.onnx')}", err=True)


def _new(dataset: "CocoDataset", design: dict[str, Any]) -> "DetectorSpec":
    from training.spec import DetectorSpec

    options = {**design, "base_size": design["anchor_size"]}
    del options["anchor_size"]
    return DetectorSpec.create(dataset.classes, category_ids=dataset.category_ids, **options)


def _resumed(model: Path, dataset: "CocoDataset", given: dict[str, Any]) -> "DetectorSpec":
    """Return the checkpoint's spec. Raises UserError if the data or an option asks for another detector."""
    from training.anchors import base_anchors
    from training.checkpoint import load

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
        if trained != value:
            shown = " ".join(str(part) for part in trained) if name == "size" else trained
            raise UserError(f"{model} was trained with {flag} {shown}", afresh)
    return spec


def _given(context: click.Context, design: dict[str, Any]) -> dict[str, Any]:
    """Return the options that the user wrote, rather than those left at their defaults."""
    return {
        name: value
        for name, value in design.items()
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }


def _announce(dataset: "CocoDataset", spec: "DetectorSpec", config: "TrainConfig") -> None:
    network = spec.network
    click.echo(
        f"{len(dataset)} images, {dataset.box_count} boxes, {len(spec.classes)} classes; "
        f"{network.backbone} of width {network.width} at {spec.size[0]} x {spec.size[1]}; "
        f"{config.iterations} iterations of {config.batch} ({config.iterations * config.batch / len(dataset):.1f} "
        "epochs)",
        err=True,
    )


class Line:
    """The progress on stderr: one line that changes on a terminal, a line a report elsewhere."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()

    def show(self, progress: "Progress") -> None:
        """Show a report."""
        text = describe(progress)
        # Erase to the end of the line: the one before may have been longer.
        click.echo(f"\r{text}\x1b[K" if self.live else text, err=True, nl=not self.live)

    def end(self) -> None:
        """Leave the live line."""
        if self.live:
            click.echo(err=True)


def describe(progress: "Progress") -> str:
    """Return a report in a line."""
    return (
        f"{progress.iteration:>{len(str(progress.iterations))}}/{progress.iterations}"
        f"  class {progress.cls_loss:.3f}  box {progress.box_loss:.3f}  lr {progress.lr:.2e}"
        f"  {progress.images_per_second:.1f} img/s  data wait {progress.data_wait:.0%}  ETA {clock(progress.eta)}"
    )


def clock(seconds: float) -> str:
    """Return a duration as 1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


VERBS: tuple[click.Command, ...] = (train,)
