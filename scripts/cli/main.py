"""The `retinaserve` command: one group of verbs, and what a user sees when one of them fails.

    retinaserve --help

A UserError becomes one or two lines on stderr and its exit code, and so does a package that is not installed;
Ctrl-C exits with 130, SIGTERM with 143. Everything else is a bug and keeps its traceback.
"""

import importlib
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import click

from retinaserve.training.errors import Exit, UserError

# The verbs as they are typed, and where their functions are in this folder.
SECTIONS = {
    "To begin": {"demo": "demo.demo", "doctor": "doctor.doctor"},
    "From labelled images to a checkpoint": {
        "data": "learn.data.data",
        "train": "learn.train.train",
        "import": "learn.import_weights.import_weights",
        "profile": "learn.train.profile",
    },
    "From a checkpoint to a server": {
        "export": "deploy.export.export",
        "build": "deploy.build.build",
        "serve": "deploy.serve.serve",
        "models": "deploy.serve.models",
    },
    "Ask it, and judge what it answers": {
        "predict": "ask.predict.predict",
        "batch": "ask.batch.batch",
        "web": "ask.web.web",
        "eval": "ask.evaluate.evaluate",
        "bench": "ask.bench.bench",
        "infer": "ask.evaluate.infer",
        "verify": "ask.verify.verify",
    },
    "Look closer": {
        "precisions": "deploy.int8.precisions",
        "sensitivity": "deploy.int8.sensitivity",
        "admit": "ask.admit.admit",
        "drill": "drill.drill",
    },
}
VERBS = {name: place for verbs in SECTIONS.values() for name, place in verbs.items()}


class Verbs(click.Group):
    """A group whose verbs are imported when they are asked for, and whose errors are one or two lines."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of use."""
        return [*VERBS, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module; None for a name that is no verb."""
        if cmd_name not in VERBS:
            return super().get_command(ctx, cmd_name)
        module, _, function = VERBS[cmd_name].rpartition(".")
        command: click.Command = getattr(importlib.import_module(f"{__package__}.{module}"), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs by what they are for, each with its whole first sentence."""
        for section, verbs in SECTIONS.items():
            with formatter.section(section):
                commands = {name: self.get_command(ctx, name) for name in verbs}
                formatter.write_dl(
                    [(name, verb.get_short_help_str(limit=200)) for name, verb in commands.items() if verb]
                )

    def invoke(self, ctx: click.Context) -> object:
        """Run the verb; print a UserError and leave with its code."""
        try:
            with _sigterm_unwinds():
                return super().invoke(ctx)
        except (UserError, ModuleNotFoundError) as error:
            shown = error if isinstance(error, UserError) else _not_installed(error, ctx.invoked_subcommand)
            click.secho(f"error: {shown.message}", fg="red", err=True)
            if shown.hint:
                click.echo(f"       {shown.hint}", err=True)
            sys.exit(shown.code)
        except (KeyboardInterrupt, click.Abort):
            click.echo("\ninterrupted", err=True)
            sys.exit(128 + signal.SIGINT)


def _not_installed(error: ModuleNotFoundError, verb: str | None) -> UserError:
    """Say which extra brings the missing package; raise the error again where none of ours does."""
    from retinaserve.scripts.doctor.machine import providing

    package, extra = providing(error.name or "")
    if package is None:
        raise error
    install = f"retinaserve[{extra}]" if extra else "retinaserve"
    return UserError(f"{verb} needs {package}: pip install '{install}'", code=Exit.USAGE)


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
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


if __name__ == "__main__":
    main()
