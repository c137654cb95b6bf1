"""`bench`: what perf_analyzer measures of a server, as a table, JSON and a plot."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from retinaserve.scripts.cli.options import FILE, json_option, server_words, tls_options, wait_option
from retinaserve.scripts.cli.output import caution, name_next, note
from retinaserve.training.errors import Exit
from retinaserve.training.files import write_json

if TYPE_CHECKING:
    from retinaserve.eval.bench.perf_analyzer import Demand
    from retinaserve.eval.client.transport import Endpoint, TlsFiles


@click.command()
@click.option(
    "--server",
    "servers",
    metavar="HOST:PORT",
    multiple=True,
    default=["localhost"],
    help="The Triton server; once for each protocol, or only HOST for both of Triton's usual ports.",
)
@click.option("--images", multiple=True, required=True, help="Images to send: files, directories, patterns.")
@click.option("--protocol", "protocols", help="grpc, http or grpc,http; those that --server names by default.")
@click.option("--concurrency", default="1:8", help="In flight: 4, 1:8 (1 2 4 8), 1:8:2 (1 3 5 7) or 1,6,16.")
@click.option(
    "--rate",
    "rates",
    metavar="R[,R...]",
    help="Requests a second at Poisson times (an open loop) instead of --concurrency: 5 or 5,10,20.",
)
@click.option("--repeat", type=click.IntRange(1), default=1, help="Rounds, to see how much figures vary.")
@click.option("--seconds", type=click.FloatRange(min=0.3), default=6.0, help="Time of each measurement.")
@wait_option
@tls_options
@json_option
@click.option("--plot", "plot_file", type=FILE, help="Draw throughput and latency into this PNG.")
def bench(
    servers: tuple[str, ...],
    images: tuple[str, ...],
    protocols: str | None,
    concurrency: str,
    rates: str | None,
    repeat: int,
    seconds: float,
    wait: float,
    tls: "TlsFiles | None",
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Measure a server with NVIDIA's perf_analyzer: throughput, latency and the time in each step.

    Every image is sent once before, to warm the server up and to leave out what it refuses.
    """
    from retinaserve.eval.bench import bench as benchmark
    from retinaserve.training.images.sources import find_images

    endpoints = bench_endpoints(servers, protocols, tls)
    demands = _demands(concurrency, rates) * repeat
    files = find_images(images)
    prepared = benchmark.Bench.prepare(endpoints, files, wait=wait)
    for file, message in prepared.refused.items():
        caution(f"{file}: left out, {message}")
    total = len(endpoints) * len(demands)
    note(f"warmed up with {len(prepared.images)} images; {total} measurements of {seconds:g} s follow")
    click.echo(benchmark.header(prepared.steps))
    done = []
    for level in prepared.run(demands, seconds=seconds):
        done.append(level)
        click.echo(benchmark.row(level))
    if json_file:
        command = [word for place in images for word in ("--images", place)]
        command += ["--rate", rates] if rates else ["--concurrency", concurrency]
        command += ["--repeat", str(repeat), "--seconds", f"{seconds:g}"]
        again = f"retinaserve bench {server_words(*endpoints, tls=tls)} {shlex.join(command)}"
        write_json(json_file, benchmark.to_dict(prepared, done, seconds=seconds, command=again))
    if plot_file:
        plot_file.parent.mkdir(parents=True, exist_ok=True)
        benchmark.plot(done, plot_file)
        note(f"plot: {plot_file}")
    name_next(f"retinaserve eval {server_words(endpoints[0], tls=tls)} --images DIR --annotations FILE.json")
    if any(level.load is None for level in done):
        sys.exit(Exit.CHECK_FAILED)


def _demands(concurrency: str, rates: str | None) -> "list[Demand]":
    """Return what is asked of the server, one after the other. Raises click.BadParameter."""
    from retinaserve.eval.bench.bench import concurrencies
    from retinaserve.eval.bench.perf_analyzer import Demand

    if rates:
        try:
            wanted = [float(rate) for rate in rates.split(",")]
        except ValueError:
            wanted = []
        if not wanted or min(wanted) <= 0:
            raise click.BadParameter(f"{rates!r} is neither 5 nor 5,10,20", param_hint="--rate")
        return [Demand(rate=rate) for rate in wanted]
    try:
        return [Demand(number) for number in concurrencies(concurrency)]
    except ValueError:
        raise click.BadParameter(
            f"{concurrency!r} is none of 4, 1:8, 1:8:2, 1,6,16", param_hint="--concurrency"
        ) from None


def bench_endpoints(
    servers: Sequence[str], protocols: str | None, tls: "TlsFiles | None" = None
) -> "list[Endpoint]":
    """Return what --server and --protocol mean together, an endpoint a protocol. Raises click.UsageError."""
    from retinaserve.eval.client.transport import PORTS, Endpoint

    names = [name.strip() for name in (protocols or "").split(",") if name.strip()]
    for name in names:
        if name not in PORTS:
            raise click.BadParameter(f"{name!r} is neither grpc nor http", param_hint="--protocol")
    wanted = [protocol for protocol in PORTS if protocol in names]
    endpoints: list[Endpoint] = []
    for server in servers:
        has_port = server.rpartition("]")[2].count(":") > 0
        if "://" in server:
            endpoints.append(Endpoint.parse(server, tls=tls))
        elif not has_port:
            endpoints += [Endpoint.parse(server, protocol, tls=tls) for protocol in wanted or ("grpc", "http")]
        else:
            only = wanted[0] if len(wanted) == 1 else "grpc"
            endpoints.append(Endpoint.parse(server, only, tls=tls))
    missing = [name for name in wanted if name not in {endpoint.protocol for endpoint in endpoints}]
    if missing:
        raise click.UsageError(
            f"--protocol {','.join(missing)}: at which port? add --server {missing[0]}://HOST:PORT"
        )
    return [endpoint for endpoint in endpoints if not wanted or endpoint.protocol in wanted]
