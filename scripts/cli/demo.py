"""`demo`: the whole road on synthetic data."""

import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from retinaserve.scripts.cli.options import FOLDER
from retinaserve.scripts.cli.output import name_next


@click.command()
@click.option(
    "--output",
    type=FOLDER,
    help="Where it writes.  [default: runs/demo, or runs/quickstart with --quick]",
)
@click.option("--quick", is_flag=True, help="Train nothing: serve the small checkpoint that comes along.")
def demo(output: Path | None, quick: bool) -> None:
    """Do all of it on synthetic data, in minutes: draw, train, export, build, serve, predict, eval, bench."""
    if quick:
        from retinaserve.scripts.demo.quickstart import quickstart

        output = output or Path("runs/quickstart")
        with _going_on():
            predictions = quickstart(output)
        click.echo(predictions)
        tell_what_to_try(output, [predictions])
        return
    from retinaserve.scripts.demo.demo import run_demo

    output = output or Path("runs/demo")
    with _going_on():
        summary = run_demo(output)
    click.echo(json.dumps(summary, indent=2))
    server, torch, onnx = (summary[name] for name in ("ap", "ap_offline_torch", "ap_offline_onnx"))
    click.secho(
        f"\nAP {server:.3f} through Triton, {torch:.3f} in torch, {onnx:.3f} in ONNX\n", bold=True, err=True
    )
    pictures = [output / "report.html", output / "report" / "contact_sheet.jpg", output / "predictions"]
    tell_what_to_try(output, pictures)


@contextmanager
def _going_on() -> Iterator[None]:
    """Say after Ctrl-C that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        name_next("the same command goes on from there")
        raise


def tell_what_to_try(output: Path, pictures: list[Path]) -> None:
    """Say what there is to see, and commands that work as they are printed."""
    folder = shlex.quote(str(output))
    activate = Path(sys.prefix) / "bin" / "activate"
    if not shutil.which("retinaserve") and activate.is_file():
        click.echo(f"\nonce       . {shlex.quote(str(activate))}", err=True)
    look = "\n           ".join(map(str, pictures))
    click.echo(
        f"""\

look at    {look}
then try   retinaserve serve {folder}/repository
           and while it runs, from another terminal:
           retinaserve predict {folder}/data/val/images --output {folder}/annotated
           retinaserve web            # a page to drop pictures on
your data  retinaserve data check --help
           retinaserve train --help   # docs/training.md has the whole road""",
        err=True,
    )
