"""`capacity`: the most requests a second at which p99 stays under a bound, beside a hand-written web service."""

import shlex
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

import click

from retinaserve.scripts.cli.options import FILE, json_option
from retinaserve.scripts.cli.output import name_next
from retinaserve.training.errors import UserError
from retinaserve.training.files import write_json


@click.command()
@click.argument("model", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--images", multiple=True, help="Pictures to send; drawn ones of 640 x 480 if not given.")
@click.option("--max-p99", type=click.FloatRange(min=1), default=500.0, help="Milliseconds that p99 may take.")
@click.option("--seconds", type=click.FloatRange(min=1), default=20.0, help="Length of each load.")
@click.option("--repeats", type=click.IntRange(1), default=1, help="Loads of each rate, whose medians count.")
@click.option("--rounds", type=click.IntRange(1), default=1, help="Turns of every service.")
@click.option("--in-flight", type=click.IntRange(1), default=4, help="Requests of the load that tells the peak.")
@click.option(
    "--precision", type=click.Choice(["f32", "bf16"]), default="f32", help="Of all services, where MODEL is float."
)
@click.option(
    "--service",
    "services",
    multiple=True,
    type=click.Choice(["triton-grpc", "triton-http", "web"]),
    help="Only this one; repeat it.  [default: all]",
)
@json_option
@click.option("--plot", "plot_file", type=FILE, help="Draw p99 over the rate into this PNG.")
def capacity(
    model: Path,
    images: tuple[str, ...],
    max_p99: float,
    seconds: float,
    repeats: int,
    rounds: int,
    in_flight: int,
    precision: str,
    services: tuple[str, ...],
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Find the rate that MODEL (.onnx) bears on this machine, served by Triton and by a small web service.

    Beside them stand the network alone, and a plain loop that decodes and infers in one process, with the same
    graph, threads and pictures.

    Requests come at Poisson times; the search ends when the rates that hold and fail are within 5 %. About eight
    rates a service. On a machine that is not quiet, --repeats 3.
    """
    import tempfile

    from retinaserve.build_tools.repository.builder import build_repository
    from retinaserve.build_tools.repository.configs import BuildOptions
    from retinaserve.eval.bench.bench import machine
    from retinaserve.scripts.drills.stage import drawn
    from retinaserve.scripts.lab.capacity import (
        SERVICES,
        CapacityOptions,
        beside,
        ceiling,
        measure,
        mix,
        plot,
        summary,
    )
    from retinaserve.scripts.lab.efficiency import PlainLoop
    from retinaserve.scripts.server.installation import usable_cores
    from retinaserve.training.images import find_images

    options = CapacityOptions(max_p99, seconds, repeats, in_flight, rounds=rounds)
    done = []
    with tempfile.TemporaryDirectory(prefix="retinaserve-") as scratch:
        repository = build_repository(
            model, Path(scratch) / "repository", options=BuildOptions(arithmetic=precision)
        ).repository
        pictures = [path.read_bytes() for path in find_images(images)][:64] if images else drawn(Path(scratch))
        limits = [_network_alone(model, precision, seconds)]
        loop = PlainLoop(model, pictures, precision=precision, threads=usable_cores())
        loop.run()  # the first is slower
        loop_rates = [round(loop.rate(min(seconds, 10)), 2)]
        click.echo(f"a plain loop, decode and infer: {loop_rates[0]:.1f} images/s")
        click.echo("service        round   peak/s  alone ms  capacity/s   CPU s  memory MB")
        for each in measure(
            model, repository, pictures, options, precision=precision, services=services or SERVICES, tell=_tell
        ):
            done.append(each)
            row = f"{each.service:<14}{each.round + 1:>6}{each.peak:>9.1f}{each.p50_alone:>10.1f}"
            row += f"{each.capacity:>12.1f}{sum(each.cpu_seconds.values()):>8.1f}"
            click.echo(f"{row}{sum(each.memory_mb.values()):>11.0f}")
            for process, memory in each.memory_mb.items() if len(each.memory_mb) > 1 else ():
                click.echo(f"  {process:<46}{each.cpu_seconds.get(process, 0):>8.1f}{memory:>11.0f}")
        loop_rates.append(round(loop.rate(min(seconds, 10)), 2))
        click.echo(f"the plain loop again: {loop_rates[1]:.1f} images/s")
        limits.append(_network_alone(model, precision, seconds))
    found = summary(done)
    ratios = beside(done)
    for service, each_round in ratios.items():
        click.echo(
            f"{service}: {statistics.median(each_round):.2f} of the web service's rate at p99 <= {max_p99:g} ms"
            + (f"; by round {', '.join(f'{ratio:.2f}' for ratio in each_round)}" if rounds > 1 else "")
        )
    top = ceiling(done, limits)
    if top:
        click.echo(f"the network alone: {top:.2f} of the web service's peak, about all that a server can gain")
    if json_file:
        report = {
            "command": shlex.join(["retinaserve", *sys.argv[1:]]),
            "machine": machine(),
            "options": asdict(options),
            "mix": mix(pictures),
            "engine_limit": {"before": limits[0], "after": limits[1]},
            "plain_loop": {"before": loop_rates[0], "after": loop_rates[1]},
            "summary": found,
            "beside_web": ratios,
            "ceiling_beside_web": top,
            "measured": [each.to_dict() for each in done],
        }
        write_json(json_file, report)
    if plot_file:
        plot_file.parent.mkdir(parents=True, exist_ok=True)
        plot(done, options, plot_file)
        click.echo(f"plot: {plot_file}", err=True)
    name_next(f"retinaserve build {model} --output repository")
    if not all(each.capacity for each in done):
        raise UserError(
            f"a service held p99 under {max_p99:g} ms at no rate", "a larger --max-p99, a faster model"
        )


def _network_alone(model: Path, precision: str, seconds: float) -> dict[str, float]:
    from retinaserve.scripts.lab.engine_limit import engine_limit
    from retinaserve.scripts.server.installation import usable_cores

    limit = engine_limit(model, threads=usable_cores(), precision=precision, seconds=min(seconds, 10))
    click.echo(
        f"the network alone: {limit['together']:.1f} images/s with all cores on a picture, "
        f"{limit['apart']:.1f} with a core a picture"
    )
    return limit


def _tell(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    capacity()
