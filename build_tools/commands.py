"""`export` and `build`: from a checkpoint to a graph, and from a graph to a Triton repository."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from build_tools.gpu_options import gpu_build_options, gpu_options, target_of
from training.errors import Exit, UserError
from training.spec import METADATA_CHECKPOINT

if TYPE_CHECKING:
    from build_tools.configs import Profile
    from build_tools.graft import Flavour

PATH = click.Path(path_type=Path)
JSON = click.option("--json", "json_path", type=PATH, help="Also write what was done to this file.")


def export_detector(
    checkpoint: Path, output: Path, size: tuple[int, int] | None = None, flavour: "Flavour" = "standard"
) -> None:
    """Write a checkpoint as a grafted ONNX file at `output`, at the spec's size or another."""
    from build_tools.graft import graft, save
    from training.checkpoint import load_model
    from training.export import export_heads

    spec, model = load_model(checkpoint)
    if size:
        spec = spec.with_size(*size)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="retinaserve-") as scratch:
        raw = Path(scratch) / "heads.onnx"
        checkpoint_sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        export_heads(model, spec, raw, metadata={METADATA_CHECKPOINT: checkpoint_sha256})
        save(graft(raw, flavour=flavour), output)


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
    export_detector(model, output, size, flavour)
    from build_tools.signature import read_signature

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
    _write_json(json_path, report)
    if flavour == "tensorrt":
        plugins = "build/plugins/libretinaserve_plugins.so"
        click.echo(f"next: trtexec --onnx={output} --dynamicPlugins={plugins}", err=True)
    else:
        click.echo(f"next: retinaserve build {output} --profile cpu --output repository", err=True)


@click.command()
@click.argument("model", type=PATH)
@click.option(
    "--profile", type=click.Choice(["cpu", "gpu"]), default="cpu", help="Which server the repository is for."
)
@click.option("--output", type=PATH, required=True, help="The repository; an existing one gets the next version.")
@click.option(
    "--precision", type=click.Choice(["f32", "bf16"]), default="f32", help="Arithmetic of the CPU profile."
)
@click.option(
    "--max-batch",
    type=click.IntRange(1, 256),
    help="Pictures of one execution, at most; 16, or what the plan was built for.",
)
@click.option(
    "--max-image-bytes", type=click.IntRange(min=1), default=32 * 1024 * 1024, help="Largest encoded picture."
)
@click.option("--max-image-pixels", type=click.IntRange(min=1), default=64_000_000, help="Largest picture.")
@gpu_options
@JSON
def build(
    model: Path,
    profile: "Profile",
    output: Path,
    precision: str,
    max_batch: int | None,
    max_image_bytes: int,
    max_image_pixels: int,
    json_path: Path | None,
    **gpu: Any,
) -> None:
    """Make the Triton repository for MODEL.

    The cpu profile takes a grafted .onnx, or a checkpoint .pth that is exported first; the gpu profile takes a
    .plan with its manifest beside it, and refuses one that was not built for the target.
    """
    from build_tools.configs import BuildOptions
    from build_tools.repository import build_repository

    options = BuildOptions(precision, max_batch, max_image_bytes, max_image_pixels, **gpu_build_options(gpu))
    target = target_of(gpu) if profile == "gpu" else None
    with tempfile.TemporaryDirectory(prefix="retinaserve-") as scratch:
        graph = model
        if model.suffix == ".pth" and profile == "cpu":
            graph = Path(scratch) / "model.onnx"
            export_detector(model, graph)
        built = build_repository(graph, output, profile=profile, options=options, target=target)
    click.echo(f"{built.repository}: version {built.version} of {', '.join(built.models)} ({profile})")
    _write_json(json_path, {"repository": str(built.repository), "version": built.version, "profile": profile})
    if profile == "gpu":
        click.echo(f"next: serve {built.repository} in NVIDIA's container: docs/deployment.md", err=True)
    else:
        click.echo(f"next: retinaserve serve {built.repository}", err=True)


def _write_json(path: Path | None, report: dict[str, object]) -> None:
    if path:
        path.write_text(json.dumps(report, indent=2) + "\n")


VERBS: tuple[click.Command, ...] = (export, build)
