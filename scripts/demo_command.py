"""`demo`: the whole road on synthetic data."""

import json
from pathlib import Path

import click


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/demo"),
    help="Where it writes.",
)
def demo(output: Path) -> None:
    """Do all of it on synthetic data, in minutes: draw, train, export, build, serve, predict, eval, bench."""
    from scripts.demo import run_demo

    summary = run_demo(output)
    click.echo(json.dumps(summary, indent=2))
    server, torch, onnx = (summary[name] for name in ("ap", "ap_offline_torch", "ap_offline_onnx"))
    click.secho(
        f"\nAP {server:.3f} through Triton, {torch:.3f} in torch, {onnx:.3f} in ONNX\n", bold=True, err=True
    )
    click.echo(
        f"""\
look at    {output / "report" / "contact_sheet.jpg"}
           {output / "predictions"}/
then try   retinaserve serve {output / "repository"}
           retinaserve web            a page to drop pictures on   (from another terminal)
           retinaserve predict PICTURE.jpg --output annotated
your data  retinaserve train model.pth --images DIR --annotations FILE.json""",
        err=True,
    )
