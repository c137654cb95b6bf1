"""`demo`: the whole road on synthetic data."""

import json
import shlex
from pathlib import Path

import click


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where it writes.  [default: runs/demo, or runs/quickstart with --quick]",
)
@click.option("--quick", is_flag=True, help="Train nothing: serve the small checkpoint that comes along.")
def demo(output: Path | None, quick: bool) -> None:
    """Do all of it on synthetic data, in minutes: draw, train, export, build, serve, predict, eval, bench."""
    if quick:
        from scripts.quickstart import quickstart

        output = output or Path("runs/quickstart")
        predictions = quickstart(output)
        click.echo(predictions)
        _name_next(output, [f"{predictions}/"])
        return
    from scripts.demo import run_demo

    output = output or Path("runs/demo")
    summary = run_demo(output)
    click.echo(json.dumps(summary, indent=2))
    server, torch, onnx = (summary[name] for name in ("ap", "ap_offline_torch", "ap_offline_onnx"))
    click.secho(
        f"\nAP {server:.3f} through Triton, {torch:.3f} in torch, {onnx:.3f} in ONNX\n", bold=True, err=True
    )
    _name_next(output, [str(output / "report" / "contact_sheet.jpg"), f"{output / 'predictions'}/"])


def _name_next(output: Path, pictures: list[str]) -> None:
    """Say what there is to see, and the next things to do."""
    look = "\n           ".join(pictures)
    click.echo(
        f"""\

look at    {look}
then try   retinaserve serve {shlex.quote(str(output / "repository"))}
           retinaserve web            a page to drop pictures on   (from another terminal)
           retinaserve predict PICTURE.jpg --output annotated
your data  docs/training.md, in short:
           retinaserve data check --images DIR --annotations FILE.json
           retinaserve train model.pth --config cpu --images DIR --annotations FILE.json
the words  `retinaserve` is in .venv/bin: . .venv/bin/activate""",
        err=True,
    )
