"""`export`: from a checkpoint to the graph that is deployed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from training.errors import Exit, UserError

if TYPE_CHECKING:
    from build_tools.graft import Flavour

PATH = click.Path(path_type=Path)
JSON = click.option("--json", "json_path", type=PATH, help="Also write what was done to this file.")


@click.command()
@click.argument("model", type=PATH)
@click.argument("output", type=PATH)
@click.option(
    "--size",
    type=click.IntRange(min=32),
    nargs=2,
    metavar="H W",
    help="Input size; the checkpoint's if not given.",
)
@click.option(
    "--flavour",
    type=click.Choice(["standard", "tensorrt"]),
    default="standard",
    help="Decode and NMS: standard operators for any runtime, or this project's TensorRT plugins.",
)
@JSON
def export(
    model: Path, output: Path, size: tuple[int, int] | None, flavour: "Flavour", json_path: Path | None
) -> None:
    """Turn the checkpoint MODEL into the deployable graph OUTPUT (.onnx).

    The graph takes uint8 pictures and answers boxes in the original's pixels: normalisation, decode, NMS and the
    undoing of the letterbox are inside.
    """
    if output.suffix != ".onnx":
        raise UserError(f"{output}: a file name that ends in .onnx is expected", code=Exit.USAGE)
    from build_tools.export import ExportOptions, export_detector
    from build_tools.signature import read_signature

    export_detector(model, output, ExportOptions(size, flavour))

    spec = read_signature(output).spec
    megabytes = output.stat().st_size / 1e6
    report: dict[str, object] = {
        "onnx": str(output),
        "megabytes": round(megabytes, 3),
        "size": spec.size,
        "classes": spec.classes,
        "flavour": flavour,
    }
    click.echo(f"{output}: {len(spec.classes)} classes at {spec.size[0]} x {spec.size[1]}, {megabytes:.1f} MB")
    write_json(json_path, report)
    if flavour == "tensorrt":
        plugins = "build/plugins/libretinaserve_plugins.so"
        click.echo(f"next: trtexec --onnx={output} --dynamicPlugins={plugins}", err=True)
    else:
        click.echo(f"next: retinaserve build {output} --profile cpu --output repository", err=True)


def write_json(path: Path | None, report: dict[str, object]) -> None:
    """Write a report, where one is asked for."""
    if path:
        path.write_text(json.dumps(report, indent=2) + "\n")
