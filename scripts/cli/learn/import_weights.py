"""`import`: public weights become a checkpoint."""

import shlex
from pathlib import Path
from typing import Any, get_args

import click

from retinaserve.scripts.cli.options import PATH
from retinaserve.scripts.cli.output import name_next
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.images.resize import RESIZES, PixelType
from retinaserve.training.spec import Clip

SOURCES = ("torchvision", "torchvision-backbone", "detectron2", "mmdetection", "yhenon", "fizyr", "odtk")


class Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers with commas between them."""

    name = "N,N,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        """Return a tuple of numbers."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not numbers with commas between them", param, ctx)


class Levels(Numbers):
    """Numbers with commas between them, and a slash between levels."""

    name = "N,.../N,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return a tuple of numbers a level."""
        return tuple(super(Levels, self).convert(level, param, ctx) for level in value.split("/"))


@click.command("import")
@click.argument("weights", type=PATH)
@click.argument("output", type=PATH, metavar="OUT.pth")
@click.option("--from", "source", type=click.Choice(SOURCES), help="Who wrote WEIGHTS, where that is in doubt.")
@click.option(
    "--size",
    type=click.IntRange(min=32),
    nargs=2,
    metavar="H W",
    help="Input of the network, or the shorter and the longest side.  [default: usual for the resize rule]",
)
@click.option(
    "--resize-rule", type=click.Choice(list(RESIZES)), help="How images become inputs.  [default: WEIGHTS']"
)
@click.option(
    "--pixels",
    type=click.Choice(get_args(PixelType)),
    help="Images, padding: rounded or not.  [default: WEIGHTS']",
)
@click.option("--annotations", type=PATH, help="COCO file that names the classes, where the weights do not.")
@click.option(
    "--anchors",
    type=click.Choice(("current", "legacy")),
    default="current",
    help="odtk: legacy for weights from before March 2020, among them the published ones of 19.04.",
)
@click.option("--norm-eps", type=click.FloatRange(min=0), help="torchvision: epsilon of the backbone's norms.")
@click.option(
    "--style", type=click.Choice(("pytorch", "caffe")), help="detectron2, mmdetection: stride and pixels."
)
@click.option(
    "--clip",
    type=click.Choice(get_args(Clip)),
    help="odtk, yhenon: where boxes end.  [default: canvas by their own rules]",
)
@click.option("--key", help="Which weights of a file with several, as of an EMA: the keys that lead to them.")
@click.option("--first-class", type=click.IntRange(0, 1), help="torchvision: the output of the first class.")
@click.option("--anchor-sizes", type=Levels(), help="Of each level, as in 32,40,50/64,80,101/...")
@click.option("--anchor-ratios", type=Numbers(), help="Heights by widths.")
@click.option("--score", "score_threshold", type=float, help="Detections below it are dropped.")
@click.option("--nms", "nms_iou", type=float, help="Overlap that suppresses.")
@click.option("--max", "max_detections", type=click.IntRange(min=1), help="Detections an image.")
@click.option("--candidates", "topk_candidates", type=click.IntRange(min=1), help="Boxes a level before NMS.")
@click.option("--mean", type=float, nargs=3, metavar="R G B", help="Of pixels in 0..1.")
@click.option("--std", type=float, nargs=3, metavar="R G B", help="Of pixels in 0..1.")
def import_weights(
    weights: Path,
    output: Path,
    source: str | None,
    annotations: Path | None,
    anchors: str,
    key: str | None,
    **said: Any,
) -> None:
    """Turn public WEIGHTS into the checkpoint OUT.pth, which exports, builds and serves like any other.

    \b
    torchvision           retinanet_resnet50_fpn, _v2, what is built of their parts, DeepForest, MLPerf
    torchvision-backbone  a ResNet, ResNeXt, MobileNet or EfficientNet-B0, to train a detector from
    detectron2            .pkl of the model zoo, .pth of training
    mmdetection           2.x and 3.x
    yhenon                pytorch-retinanet: state dict or whole model
    fizyr                 keras-retinanet: .h5
    odtk                  checkpoint of NVIDIA's retinanet-examples

    Whose WEIGHTS are is found out. They are read as data: no code in the file is run, and nothing is downloaded.
    docs/import.md tells what each family needs to be told.
    """
    from retinaserve.training import importers
    from retinaserve.training.checkpoint import Backbone, Checkpoint, save, save_backbone

    if output.suffix != ".pth":
        raise UserError(f"{output}: a file name that ends in .pth is expected", code=Exit.USAGE)
    if not weights.exists():
        raise UserError(f"{weights}: no such file", "weights that you have downloaded are expected")
    categories = read_categories(annotations) if annotations else None
    choices = importers.Choices(categories=categories, convention=anchors, **said)
    result = importers.import_weights(weights, choices, source=source, key=key)
    if isinstance(result, Backbone):
        save_backbone(output, result)
        click.echo(
            f"{output}: {result.name} of width {result.width}, a backbone to fine-tune from, not a detector"
        )
        name_next(f"retinaserve train MODEL.pth --fine-tune {shlex.quote(str(output))} ...")
        return
    save(output, Checkpoint(result.spec, result.weights))
    for note in result.notes:
        click.echo(note, err=True)
    count = len(result.spec.classes)
    click.echo(f"{output}: {count} {'class' if count == 1 else 'classes'} at {result.spec.size_text}")
    name_next(shlex.join(["retinaserve", "serve", str(output)]))


def read_categories(path: Path) -> dict[int, str]:
    """Return the names of a COCO file's categories by their ids, in its order. Raises UserError."""
    from retinaserve.training.check.findings import refuse_errors
    from retinaserve.training.coco import read_labels

    labels = read_labels(path, lists=("categories",))
    refuse_errors(labels.findings, path)
    return dict(labels.categories)
