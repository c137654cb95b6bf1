"""`efficiency`: the benchmark of `make bench`."""

from pathlib import Path

import click


@click.command()
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("runs/bench"), help="Where models and results go."
)
@click.option("--size", type=click.IntRange(64), default=512, help="Input height and width.")
@click.option("--backbone", default="resnet18", help="Backbone of the detector.")
@click.option(
    "--precision", type=click.Choice(["f32", "bf16", "int8"]), default="f32", help="Of loop and server alike."
)
@click.option("--rounds", type=click.IntRange(1), default=3, help="Turns of loop and server for each protocol.")
@click.option("--seconds", type=click.FloatRange(3), default=18.0, help="Length of each load.")
@click.option("--concurrency", type=click.IntRange(1), default=4, help="Requests in flight at saturation.")
def efficiency(
    output: Path, size: int, backbone: str, precision: str, rounds: int, seconds: float, concurrency: int
) -> None:
    """Compare Triton with a plain loop in one process: same pictures, same graph, same threads."""
    from retinaserve.scripts.lab.efficiency import EfficiencyOptions, measure, report

    options = EfficiencyOptions(backbone, size, precision, rounds, seconds, concurrency)
    columns = ("decode", "engine", "p50", "im/s", "p50 alone", "efficiency", "added ms")
    click.echo(f"{'':9}{'plain loop, ms a picture':>30}{'Triton':>22}", err=True)
    click.echo(
        f"{'protocol':<9}" + "".join(f"{name:>{10 if n < 3 else 12}}" for n, name in enumerate(columns)), err=True
    )
    turns = []
    for turn in measure(output, options):
        turns.append(turn)
        loop = turn.loop
        row = f"{turn.protocol:<9}{loop.decode:>10.1f}{loop.engine:>10.1f}{loop.p50:>10.1f}"
        row += f"{turn.throughput_ips:>12.2f}{turn.p50_alone:>12.1f}{turn.efficiency:>12.3f}{turn.added_ms:>12.2f}"
        click.echo(row, err=True)
    what = f"{backbone} {size} x {size}, {precision}, medians of {rounds} rounds"
    for protocol, found in report(turns, options)["medians"].items():
        share = f"{found['efficiency']:.3f} of the plain loop's rate with {concurrency} requests in flight"
        click.echo(f"{protocol}: {share}, {found['added_ms']:+.2f} ms on a lone request ({what})")
    click.echo(f"all turns: {output / f'efficiency_{precision}.json'}", err=True)


if __name__ == "__main__":
    efficiency()
