"""`models`: which version of a detector a running server answers with."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eval.options import FILE, write_json
from training.next_step import name_next

if TYPE_CHECKING:
    from scripts.models import Deployment

REPOSITORY = click.argument("repository", type=click.Path(path_type=Path, file_okay=False))
VERSION = click.argument("version", type=click.IntRange(min=1))
SERVER = click.option(
    "--server",
    metavar="HOST:PORT",
    default="localhost:8001",
    help="The server, started with `serve --reload`: HOST:PORT, grpc://HOST:PORT or http://HOST:PORT.",
)
TOKEN = click.option("--admin-token-file", "token", type=FILE, help="The token that `serve` was given.")
JSON = click.option("--json", "json_file", type=FILE, help="Write the state to this JSON file.")


@click.group()
def models() -> None:
    """See and change which version of REPOSITORY a server answers with, while it answers.

    `build` into an existing repository adds a version; `canary` tries it beside, `use` switches to it, `rollback`
    goes back, `unload` frees its memory. The repository remembers it: a restarted server serves the same.
    """


@models.command()
@REPOSITORY
@SERVER
@TOKEN
@JSON
def status(repository: Path, server: str, token: Path | None, json_file: Path | None) -> None:
    """Print the versions on disk, in memory, and answering."""
    deployment = _deployment(repository, server, token)
    _report(deployment, json_file)
    name_next(f"retinaserve models use {repository} VERSION --server {server}")


@models.command()
@REPOSITORY
@VERSION
@SERVER
@TOKEN
@JSON
def canary(repository: Path, version: int, server: str, token: Path | None, json_file: Path | None) -> None:
    """Serve VERSION beside the present one, under the name detector_canary."""
    deployment = _deployment(repository, server, token)
    deployment.canary(version)
    _report(deployment, json_file)
    name_next(f"retinaserve models use {repository} {version} --server {server}")


@models.command()
@REPOSITORY
@VERSION
@SERVER
@TOKEN
@JSON
def use(repository: Path, version: int, server: str, token: Path | None, json_file: Path | None) -> None:
    """Answer with VERSION from now on; the one before stays in memory."""
    deployment = _deployment(repository, server, token)
    deployment.use(version)
    _report(deployment, json_file)
    name_next(f"retinaserve models rollback {repository} --server {server}")


@models.command()
@REPOSITORY
@SERVER
@TOKEN
@JSON
def rollback(repository: Path, server: str, token: Path | None, json_file: Path | None) -> None:
    """Answer with the version that did before."""
    deployment = _deployment(repository, server, token)
    deployment.rollback()
    _report(deployment, json_file)
    name_next(f"retinaserve models status {repository} --server {server}")


@models.command()
@REPOSITORY
@VERSION
@SERVER
@TOKEN
@JSON
def unload(repository: Path, version: int, server: str, token: Path | None, json_file: Path | None) -> None:
    """Take VERSION out of the server's memory; its files stay."""
    deployment = _deployment(repository, server, token)
    deployment.unload(version)
    _report(deployment, json_file)
    name_next(f"retinaserve models status {repository} --server {server}")


def _deployment(repository: Path, server: str, token: Path | None) -> "Deployment":
    from eval.transport import Endpoint
    from scripts.models import Deployment
    from scripts.protection import read_token

    return Deployment(repository, Endpoint.parse(server), read_token(token) if token else None)


def _report(deployment: "Deployment", json_file: Path | None) -> None:
    state: dict[str, Any] = deployment.status()
    notes = {"served": "answers as detector", "canary": "answers as detector_canary", "previous": "served before"}
    for version in state["on_disk"]:
        said = [words for key, words in notes.items() if state[key] == version]
        if version in state["ready"].get("retinanet", []):
            said.append("in memory")
        click.echo(f"version {version}: {', '.join(said) or 'on disk'}")
    if json_file:
        write_json(json_file, json.loads(json.dumps(state)))
