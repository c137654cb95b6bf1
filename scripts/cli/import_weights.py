"""`import`: public weights become a checkpoint."""

import shlex
from pathlib import Path

import click

from retinaserve.scripts.cli.options import PATH
from retinaserve.scripts.cli.output import name_next
from retinaserve.training.errors import Exit, UserError

SOURCES = ("torchvision", "torchvision-backbone", "odtk")


@click.command("import")
@click.argument("weights", type=PATH)
@click.argument("output", type=PATH, metavar="OUT.pth")
@click.option("--from", "source", type=click.Choice(SOURCES), required=True, help="Who wrote WEIGHTS.")
@click.option(
    "--size",
    type=click.IntRange(min=32),
    nargs=2,
    default=(1024, 1024),
    metavar="H W",
    help="Input of the network. A torchvision model agrees with its own self at multiples of 128.",
)
@click.option("--annotations", type=PATH, help="COCO file that names the classes, where they are not COCO's 80.")
@click.option(
    "--anchors",
    type=click.Choice(("current", "legacy")),
    default="current",
    help="odtk: legacy for weights from before March 2020, among them the published ones of 19.04.",
)
@click.option("--norm-eps", type=click.FloatRange(min=0), help="torchvision: epsilon of the backbone's norms.")
def import_weights(
    weights: Path,
    output: Path,
    source: str,
    size: tuple[int, int],
    annotations: Path | None,
    anchors: str,
    norm_eps: float | None,
) -> None:
    """Turn public WEIGHTS into the checkpoint OUT.pth, which exports, builds and serves like any other.

    \b
    torchvision           state dict of retinanet_resnet50_fpn or retinanet_resnet50_fpn_v2
    torchvision-backbone  state dict of a ResNet, ResNeXt or MobileNetV2, to train a detector from
    odtk                  checkpoint of NVIDIA's retinanet-examples

    The file is read as data: no code in it is run, and nothing is downloaded.
    """
    from retinaserve.training import importers
    from retinaserve.training.checkpoint import Checkpoint, read, save, save_backbone

    if output.suffix != ".pth":
        raise UserError(f"{output}: a file name that ends in .pth is expected", code=Exit.USAGE)
    if not weights.is_file():
        raise UserError(f"{weights}: no such file", "weights that you have downloaded are expected")
    try:
        content = read(weights)
    except UserError as error:
        if "not a checkpoint" in error.message:
            raise UserError(
                f"{weights}: not weights that can be read as data",
                "save the model's state_dict() with torch.save, rather than the model",
            ) from None
        raise
    categories = read_categories(annotations) if annotations else None
    try:
        if source == "torchvision-backbone":
            backbone = importers.import_backbone(content)
            save_backbone(output, backbone)
            click.echo(f"{output}: {backbone.name} of width {backbone.width}")
            name_next(f"retinaserve train MODEL.pth --fine-tune {shlex.quote(str(output))} ...")
            return
        if source == "odtk":
            detector = importers.import_odtk(content, size=size, convention=anchors, categories=categories)
        else:
            detector = importers.import_torchvision(content, size=size, categories=categories, eps=norm_eps)
    except UserError as error:
        raise UserError(f"{weights}: {error.message}", error.hint) from None
    save(output, Checkpoint(detector.spec, detector.weights))
    for note in detector.notes:
        click.echo(note, err=True)
    click.echo(f"{output}: {len(detector.spec.classes)} classes at {size[0]} x {size[1]}")
    name_next(shlex.join(["retinaserve", "export", str(output), str(output.with_suffix(".onnx"))]))


def read_categories(path: Path) -> dict[int, str]:
    """Return the names of a COCO file's categories by their ids, in its order. Raises UserError."""
    from retinaserve.training.check.findings import refuse_errors
    from retinaserve.training.coco import read_labels

    labels = read_labels(path, lists=("categories",))
    refuse_errors(labels.findings, path)
    return dict(labels.categories)
