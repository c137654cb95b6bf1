"""`compile-check`: NVIDIA's compiler on our graphs, without a GPU."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from retinaserve.scripts.cli.export_plan import percent_bar
from retinaserve.scripts.cli.options import PATH
from retinaserve.scripts.cli.output import name_next
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import write_json

if TYPE_CHECKING:
    from retinaserve.scripts.lab.compile_check import Compiled

GPUS = {"7.5": "T4", "8.0": "A100", "8.6": "A10", "8.9": "L4", "12.0": "RTX 50", "12.1": "GB10"}
WIDTHS = (24, 14, 8, 20, 8, 9, 9)


@click.command("compile-check")
@click.argument("graphs", type=PATH, nargs=-1)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="CAPABILITY",
    default=("7.5", "8.6", "8.9", "12.0"),
    help="Compute capability to compile for; can be repeated.",
)
@click.option(
    "--batch", type=click.IntRange(1), nargs=3, metavar="MIN OPT MAX", default=(1, 8, 16), help="Batch sizes."
)
@click.option(
    "--backbone",
    "backbones",
    multiple=True,
    default=("resnet18", "resnet50"),
    help="Without GRAPHS: a detector to make, in every precision; can be repeated.",
)
@click.option(
    "--output", type=PATH, default=Path("runs/compile"), help="Without GRAPHS: where those that are made go."
)
@click.option("--json", "json_path", type=PATH, help="Also write the results to this file.")
def compile_check(
    graphs: tuple[Path, ...],
    targets: tuple[str, ...],
    batch: tuple[int, int, int],
    backbones: tuple[str, ...],
    output: Path,
    json_path: Path | None,
) -> None:
    """Compile GRAPHS (.onnx) with NVIDIA's parser and builder for GPUs that need not be there.

    Each is compiled from normalisation to the candidates, by TensorRT for RTX. Exits with 1 where a graph is
    refused, or a convolution runs in a wider type than its graph states. Without GRAPHS, detectors of published
    size with random weights are made first.
    """
    from retinaserve.scripts.lab.compile_check import compile_check as run
    from retinaserve.scripts.lab.compile_graphs import make_graphs

    paths = list(graphs)
    if not paths:
        for backbone in backbones:
            click.echo(f"making {backbone} in every precision ...", err=True)
            paths += make_graphs(output, backbone)
    done: list[Compiled] = []
    with percent_bar() as show:
        for compiled in run(paths, targets, batch=batch, progress=show):
            if not done:
                click.echo(_row("graph", "GPU", "layers", "convolutions", "fallen", "MB", "seconds"))
            done.append(compiled)
            click.echo(_told(compiled))
    if json_path:
        write_json(json_path, {"batch": batch, "results": [_record(each) for each in done]})
    problems = [each for each in done if each.problem]
    for each in problems:
        click.secho(f"{each.graph} on {each.compute_capability}: {each.problem}", fg="red", err=True)
    if problems:
        raise UserError(
            f"{len(problems)} of {len(done)} builds are not as they should be",
            "what NVIDIA's builder says stands above",
            code=Exit.CHECK_FAILED,
        )
    name_next(f"retinaserve export {paths[0]} MODEL.plan", where="on the GPU")


def _told(compiled: "Compiled") -> str:
    name = GPUS.get(compiled.compute_capability, "")
    gpu = f"{compiled.compute_capability} {name}".strip()
    report = compiled.report
    if report is None:
        return _row(compiled.graph.name, gpu, "refused")
    convolutions = ", ".join(f"{count} {kind}" for kind, count in sorted(report.convolutions.items()))
    return _row(
        compiled.graph.name,
        gpu,
        str(report.layers),
        convolutions,
        str(len(report.fallen)),
        f"{compiled.engine_bytes / 1e6:.1f}",
        f"{compiled.seconds:.1f}",
    )


def _row(*cells: str) -> str:
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=False)).rstrip()


def _record(compiled: "Compiled") -> dict[str, object]:
    record: dict[str, object] = {
        "graph": str(compiled.graph),
        "compute_capability": compiled.compute_capability,
        "cut_before": compiled.cut,
        "problem": compiled.problem,
    }
    report = compiled.report
    if report:
        record |= {
            "layers": report.layers,
            "convolutions": dict(report.convolutions),
            "convolutions_stated": dict(report.asked),
            "fallen": list(report.fallen),
            "other_layers": dict(report.other),
            "onnx_bytes": compiled.graph.stat().st_size,
            "engine_bytes": compiled.engine_bytes,
            "build_seconds": round(compiled.seconds, 2),
        }
    return record


if __name__ == "__main__":
    compile_check()
