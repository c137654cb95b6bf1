"""The verbs of this folder: `export` from its own file, and `build`, from a graph to a Triton repository."""

import tempfile
from pathlib import Path

import click

from build_tools.export_command import JSON, PATH, export, write_json


@click.command()
@click.argument("model", type=PATH)
@click.option("--profile", type=click.Choice(["cpu"]), default="cpu", help="Which server the repository is for.")
@click.option("--output", type=PATH, required=True, help="The repository; an existing one gets the next version.")
@click.option(
    "--precision", type=click.Choice(["f32", "bf16"]), default="f32", help="Arithmetic of the CPU profile."
)
@click.option("--max-batch", type=click.IntRange(1, 256), default=16, help="Pictures of one execution, at most.")
@click.option(
    "--max-image-bytes", type=click.IntRange(min=1), default=32 * 1024 * 1024, help="Largest encoded picture."
)
@click.option("--max-image-pixels", type=click.IntRange(min=1), default=64_000_000, help="Largest picture.")
@JSON
def build(
    model: Path,
    profile: str,
    output: Path,
    precision: str,
    max_batch: int,
    max_image_bytes: int,
    max_image_pixels: int,
    json_path: Path | None,
) -> None:
    """Make the Triton repository for MODEL (a grafted .onnx, or a checkpoint .pth that is exported first)."""
    from build_tools.configs import BuildOptions
    from build_tools.export import export_detector
    from build_tools.repository import build_repository

    options = BuildOptions(precision, max_batch, max_image_bytes, max_image_pixels)
    with tempfile.TemporaryDirectory(prefix="retinaserve-") as scratch:
        graph = model
        if model.suffix == ".pth":
            graph = Path(scratch) / "model.onnx"
            export_detector(model, graph)
        built = build_repository(graph, output, profile=profile, options=options)
    click.echo(f"{built.repository}: version {built.version} of preprocess, retinanet and detector ({profile})")
    write_json(json_path, {"repository": str(built.repository), "version": built.version, "profile": profile})
    click.echo(f"next: retinaserve serve {built.repository}", err=True)


VERBS: tuple[click.Command, ...] = (export, build)
