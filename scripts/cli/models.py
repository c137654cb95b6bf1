"""`models`: which version of a detector a running server answers with."""

import functools
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retinaserve.scripts.cli.options import COUNT, FILE, FOLDER
from retinaserve.scripts.cli.output import name_next
from retinaserve.training.files import write_json

if TYPE_CHECKING:
    from retinaserve.scripts.server.rollout import Deployment

VERSION = click.argument("version", type=COUNT)


def on_deployment(verb: Callable[..., list[str]]) -> Callable[..., None]:
    """Give a verb what all of them take. It gets the Deployment, and returns the verb of `models` that follows."""

    @click.argument("repository", type=FOLDER)
    @click.option(
        "--server",
        metavar="HOST:PORT",
        default="localhost:8001",
        help="The server, started with `serve --reload`: HOST:PORT, grpc://HOST:PORT or http://HOST:PORT.",
    )
    @click.option("--admin-token-file", "token", type=FILE, help="The token that `serve` was given.")
    @click.option("--json", "json_file", type=FILE, help="Write the state to this JSON file.")
    @functools.wraps(verb)
    def command(
        *, repository: Path, server: str, token: Path | None, json_file: Path | None, **version: int
    ) -> None:
        from retinaserve.eval.client.transport import Endpoint
        from retinaserve.scripts.server.protection import read_token
        from retinaserve.scripts.server.rollout import Deployment

        deployment = Deployment(repository, Endpoint.parse(server), read_token(token) if token else None)
        following, *arguments = verb(deployment, **version)
        _report(deployment, json_file)
        words = ["retinaserve", "models", following, str(repository), *arguments, "--server", server]
        words += ["--admin-token-file", str(token)] if token else []
        name_next(shlex.join(words))

    return command


@click.group()
def models() -> None:
    """See and change which version of REPOSITORY a server answers with, while it answers.

    `build` into an existing repository adds a version; `canary` tries it beside, `use` switches to it, `rollback`
    goes back, `unload` frees its memory. The repository remembers it: a restarted server serves the same.
    """


@models.command()
@on_deployment
def status(_: "Deployment") -> list[str]:
    """Print the versions on disk, in memory, and answering."""
    return ["use", "VERSION"]


@models.command()
@on_deployment
@VERSION
def canary(deployment: "Deployment", version: int) -> list[str]:
    """Serve VERSION beside the present one, under the name detector_canary."""
    deployment.canary(version)
    return ["use", str(version)]


@models.command()
@on_deployment
@VERSION
def use(deployment: "Deployment", version: int) -> list[str]:
    """Answer with VERSION from now on; the one before stays in memory."""
    deployment.use(version)
    return ["rollback"]


@models.command()
@on_deployment
def rollback(deployment: "Deployment") -> list[str]:
    """Answer with the version that did before."""
    deployment.rollback()
    return ["status"]


@models.command()
@on_deployment
@VERSION
def unload(deployment: "Deployment", version: int) -> list[str]:
    """Take VERSION out of the server's memory; its files stay."""
    deployment.unload(version)
    return ["status"]


def _report(deployment: "Deployment", json_file: Path | None) -> None:
    state: dict[str, Any] = deployment.status()
    notes = {"served": "answers as detector", "canary": "answers as detector_canary", "previous": "served before"}
    for version in state["on_disk"]:
        notes_of = [words for key, words in notes.items() if state[key] == version]
        if version in state["ready"].get("retinanet", []):
            notes_of.append("in memory")
        click.echo(f"version {version}: {', '.join(notes_of) or 'on disk'}")
    if json_file:
        write_json(json_file, json.loads(json.dumps(state)))
