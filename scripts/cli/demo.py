"""`demo`: everything on synthetic data, each step a command that is shown."""

import json
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from retinaserve.scripts.cli.options import FOLDER
from retinaserve.scripts.cli.output import STEPS, name_next
from retinaserve.training.errors import Exit, UserError

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
STYLES: dict[str, dict[str, Any]] = {
    "step": {"bold": True},
    "command": {"fg": "cyan"},
    "note": {"dim": True},
    "text": {},
}


@click.command()
@click.option(
    "--output",
    type=FOLDER,
    help="Where it writes.  [default: runs/demo, or runs/quickstart with --quick]",
)
@click.option("--quick", is_flag=True, help="Train nothing: serve the small checkpoint that comes along.")
@click.pass_context
def demo(context: click.Context, output: Path | None, quick: bool) -> None:
    """Do all of it on synthetic data, in minutes: draw, train, export, build, serve, predict, eval, bench."""
    from retinaserve.scripts.demo import run_demo, run_quickstart

    run = partial(_run, context)
    try:
        if quick:
            output = output or Path("runs/quickstart")
            predictions = run_quickstart(output, run, _show)
            click.echo(predictions)
            _show_what_to_try(output, [predictions])
            return
        output = output or Path("runs/demo")
        summary = run_demo(output, run, _show)
    except KeyboardInterrupt:
        name_next("the same command goes on from there")
        raise
    click.echo(json.dumps(summary, indent=2))
    server, torch, onnx = (summary[name] for name in ("ap", "ap_offline_torch", "ap_offline_onnx"))
    scores = f"\nAP {server:.3f} through Triton, {torch:.3f} in torch, {onnx:.3f} in ONNX\n"
    click.secho(scores, bold=True, err=True)
    images = [output / "report.html", output / "report" / "contact_sheet.jpg", output / "predictions"]
    _show_what_to_try(output, images)


def _run(context: click.Context, words: Sequence[str]) -> None:
    """Run another verb of the group in this process. Raises UserError as the verb does, or for its exit code."""
    group = context.find_root().command
    assert isinstance(group, click.Group)
    name, verb, rest = group.resolve_command(context, list(words))
    assert verb
    context.meta[STEPS] = True
    try:
        with verb.make_context(name, rest, parent=context) as inner:
            verb.invoke(inner)
    except SystemExit as end:  # the verb has printed why
        if end.code == INTERRUPTED:
            raise KeyboardInterrupt from None
        if end.code == TERMINATED or not end.code:
            raise
        raise UserError("what it printed says why", code=Exit(int(end.code))) from None
    finally:
        del context.meta[STEPS]


def _show(kind: str, text: str) -> None:
    click.secho(text, err=True, **STYLES[kind])


def _show_what_to_try(output: Path, images: list[Path]) -> None:
    """Print what there is to see, and commands that work as they are printed."""
    folder = shlex.quote(str(output))
    activate = Path(sys.prefix) / "bin" / "activate"
    if not shutil.which("retinaserve") and activate.is_file():
        click.echo(f"\nonce       . {shlex.quote(str(activate))}", err=True)
    look = "\n           ".join(map(str, images))
    click.echo(
        f"""\

look at    {look}
then try   retinaserve serve {folder}/repository
           and while it runs, from another terminal:
           retinaserve predict {folder}/data/val/images --output {folder}/annotated
           retinaserve web            # a page to drop images on
your data  retinaserve data check --help
           retinaserve train --help   # docs/training.md has the whole road""",
        err=True,
    )
