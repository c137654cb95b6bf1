"""The `retinaserve` command: joins the folders' verbs into one group and prints what a user should see.

    retinaserve --help

A UserError becomes one or two lines on stderr and its exit code; Ctrl-C exits with 130, SIGTERM with 143.
Everything else is a bug and keeps its traceback. Verbs import what is heavy inside themselves, so that `--help`
stays quick.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import click

from retinaserve.scripts.cli import build as build_commands
from retinaserve.scripts.cli import train as training_commands
from retinaserve.scripts.cli import verbs as script_commands
from retinaserve.training.errors import UserError

SECTIONS = {
    "To begin": ("demo", "doctor"),
    "From labelled pictures to a checkpoint": ("data", "train", "import", "profile"),
    "From a checkpoint to a server": ("export", "build", "serve", "models"),
    "Ask it, and judge what it answers": ("predict", "web", "eval", "bench", "infer", "verify"),
    "Look closer": ("precisions", "sensitivity", "admit", "efficiency", "capacity", "drill"),
    "For this project's own tables and checks": ("model-table", "compile-check"),
}


class Verbs(click.Group):
    """A click group that answers a UserError without a traceback and lists the verbs in the order of use."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs by what they are for, each with its whole first sentence."""
        for section, names in SECTIONS.items():
            with formatter.section(section):
                rows = [(name, self.commands[name].get_short_help_str(limit=200)) for name in names]
                formatter.write_dl(rows)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs from labelled images to boxes, rather than by the alphabet."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> object:
        """Run the verb; print a UserError and leave with its code."""
        try:
            with _ended_in_order():
                return super().invoke(ctx)
        except UserError as error:
            click.secho(f"error: {error.message}", fg="red", err=True)
            if error.hint:
                click.echo(f"       {error.hint}", err=True)
            sys.exit(error.code)
        except (KeyboardInterrupt, click.Abort):
            click.echo("\ninterrupted", err=True)
            sys.exit(128 + signal.SIGINT)


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Let SIGTERM, of `timeout` or a container's stop, unwind as Ctrl-C does: servers stop, temporary files go."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="retinaserve")
def main() -> None:
    """RetinaNet from labelled images to boxes over HTTP and gRPC, on a real Triton.

    `retinaserve demo --quick` shows the first boxes in a minute; VERB --help explains a verb, docs/README.md has a
    page for each task.
    """


for _verb in (
    *script_commands.VERBS_BEFORE,
    *training_commands.VERBS,
    *build_commands.VERBS,
    *script_commands.VERBS_SERVER,
    *script_commands.VERBS_ASK,
    *script_commands.VERBS_AFTER,
):
    main.add_command(_verb)

if __name__ == "__main__":
    main()
