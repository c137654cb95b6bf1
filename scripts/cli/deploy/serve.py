"""`serve`: the embedded Triton over a repository until Ctrl-C. `models`: which version it answers with."""

import functools
import json
import shlex
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retinaserve.scripts.cli.options import COUNT, FILE, FOLDER, PATH
from retinaserve.scripts.cli.output import caution, name_next, note
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import sha256, write_json

if TYPE_CHECKING:
    from retinaserve.scripts.server.protection import Tls
    from retinaserve.scripts.server.rollout import Deployment
    from retinaserve.scripts.server.triton import ServerOptions, TritonServer

READY = """\
HTTP      http://{http}
gRPC      {grpc}
metrics   {metrics}
log       {log}

Ask it from another terminal; the first shows a page to drop images on:

{web}

{predict}

{curl}

{python}
"""
WEB = "retinaserve web --server {page} --metrics {metrics}"
PREDICT = "retinaserve predict IMAGE.jpg --server {grpc}{tls}"
# Triton's binary extension: a JSON header, then the image's bytes; the answer is JSON.
CURL = """\
f="IMAGE.jpg"; n=$(stat -c %s "$f")
h='{{"inputs":[{{"name":"image_bytes","shape":[1,'$n'],"datatype":"UINT8","parameters":{{"binary_data_size":'$n'}}}}]}}'
(printf %s "$h"; cat "$f") | curl -s -H "Inference-Header-Content-Length: ${{#h}}" \\
  --data-binary @- http://{http}/v2/models/detector/infer"""
PYTHON = """\
python - <<'EOF'
from pathlib import Path
from retinaserve import Client{imports}
with Client("{grpc}"{tls}) as client:
    found = client.predict([Path("IMAGE.jpg").read_bytes()])[0].above(0.5)
    print([client.class_names[index] for index in found.classes], found.boxes)
EOF"""


def ready_text(server: "TritonServer") -> str:
    """Return the endpoints of a running server and four ways to ask it, to be pasted as they are."""
    urls = {"http": server.http_url, "grpc": server.grpc_url, "metrics": server.metrics_url}
    page, options, arguments, imports = server.grpc_url, "", "", ""
    if tls := server.options.tls:
        page = f"http://{server.http_url}"  # on this machine, which needs no certificates
        imports = "\nfrom retinaserve.eval.client.transport import TlsFiles"
        options, arguments = " --ca CA.pem", ', tls=TlsFiles(Path("CA.pem"))'
        if tls.client_ca:
            options += " --client-cert CLIENT.pem --client-key CLIENT.key"
            arguments = ', tls=TlsFiles(Path("CA.pem"), Path("CLIENT.pem"), Path("CLIENT.key"))'
    examples = {
        "web": WEB.format(**urls, page=page),
        "predict": PREDICT.format(**urls, tls=options),
        "curl": CURL.format(**urls),
        "python": PYTHON.format(**urls, tls=arguments, imports=imports),
    }
    return READY.format(**urls, **examples, log=server.log)


def tls_of(certificate: Path | None, key: Path | None, client_ca: Path | None) -> "Tls | None":
    """Return what the three options mean together. Raises click.UsageError for half of a pair."""
    from retinaserve.scripts.server.protection import Tls

    if certificate and key:
        return Tls(certificate, key, client_ca)
    if certificate or key or client_ca:
        raise click.UsageError("--tls-cert and --tls-key belong together, and --tls-client-ca needs both")
    return None


def repository_of(path: Path) -> Path:
    """Return the repository of a checkpoint, made beside it if its newest version is of another; else `path`."""
    from retinaserve.build_tools.repository import builder, configs
    from retinaserve.training.spec import DETECTOR

    if path.suffix != ".pth" or path.is_dir():
        return path
    repository = path.with_name(f"{path.stem}-repository")
    config = repository / DETECTOR / "config.pbtxt"
    known = configs.read_config(config).parameters if config.is_file() else {}
    if "checkpoint_sha256" not in known or known["checkpoint_sha256"].string_value != sha256(path):
        note(f"building {repository} of {path} ...")
        note(f"version {builder.build(path, repository).version}, fp32; INT8 and more: retinaserve build --help")
    return repository


@click.command()
@click.argument("repository", type=PATH, metavar="REPOSITORY|MODEL.pth")
@click.option("--host", default="127.0.0.1", help="Address to listen on; another than loopback needs --expose.")
@click.option("--expose", is_flag=True, help="Allow others in, although Triton 2.51 lacks later fixes.")
@click.option("--http-port", type=click.IntRange(0, 65535), default=8000, help="HTTP port; 0 takes a free one.")
@click.option("--grpc-port", type=click.IntRange(0, 65535), default=8001, help="gRPC port; 0 takes a free one.")
@click.option(
    "--metrics-port", type=click.IntRange(0, 65535), default=8002, help="Metrics port; 0 takes a free one."
)
@click.option(
    "--threads", type=click.IntRange(0, 1024), default=0, help="Of decoding and inference; 0: all cores."
)
@click.option("--timeout", type=click.FloatRange(min=1), default=120.0, help="Seconds that loading may take.")
@click.option("--reload", is_flag=True, help="Let `retinaserve models` change versions; needs --admin-token-file.")
@click.option(
    "--restart/--no-restart",
    default=True,
    help="Start the server again when it, or one of its processes, dies or answers no image: docs/operations.md.",
)
@click.option("--tls-cert", type=FILE, help="PEM certificate of gRPC; HTTP and metrics stay on loopback.")
@click.option("--tls-key", type=FILE, help="PEM private key of --tls-cert.")
@click.option("--tls-client-ca", type=FILE, help="PEM authority: only clients with its certificate are served.")
@click.option("--admin-token-file", type=FILE, help="Token for the administrative calls, else closed.")
@click.option(
    "--trace",
    multiple=True,
    metavar="SETTING",
    help="Triton's --trace-config, like level=TIMESTAMPS or opentelemetry,url=URL; may be repeated.",
)
@click.option("--log", type=PATH, help="Keep the server's log in this file.")
@click.option("--verbose", is_flag=True, help="Let the server log every request.")
def serve(
    repository: Path,
    host: str,
    expose: bool,
    timeout: float,
    reload: bool,
    restart: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    admin_token_file: Path | None,
    log: Path | None,
    **listening: Any,
) -> None:
    """Serve REPOSITORY with the embedded Triton until Ctrl-C.

    Of a checkpoint MODEL.pth the repository is MODEL-repository beside it, built first in fp32 unless its newest
    version is of this checkpoint. `build` has more to choose: INT8, limits, tiles.
    """
    from retinaserve.scripts.server.protection import LOOPBACK, check_exposure, read_token
    from retinaserve.scripts.server.triton import ServerOptions

    check_exposure(host, expose=expose)
    if host not in LOOPBACK:
        caution(f"warning: {host} is open to others, and the embedded Triton 2.51 lacks later security fixes")
    if reload and not admin_token_file:
        raise click.UsageError("--reload needs --admin-token-file: who may load models may run code")
    repository = repository_of(repository)
    options = ServerOptions(
        host,
        reload=reload,
        tls=tls_of(tls_cert, tls_key, tls_client_ca),
        admin_token=read_token(admin_token_file) if admin_token_file else None,
        **listening,
    )
    asked = threading.Event()
    previous = {
        number: signal.signal(number, lambda *_: asked.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        if restart:
            _supervise(repository, options, log, timeout, asked)
        else:
            _serve_once(repository, options, log, timeout, asked)
    finally:
        for number, handler in previous.items():
            with suppress(ValueError):
                signal.signal(number, handler)


def _say_ready(server: "TritonServer") -> None:
    click.secho("ready", fg="green", err=True)
    click.echo(ready_text(server))


def _serve_once(
    repository: Path, options: "ServerOptions", log: Path | None, timeout: float, asked: threading.Event
) -> None:
    from retinaserve.scripts.server.triton import TritonServer

    with TritonServer(repository, options, log=log) as server:
        note(f"starting Triton on {repository} ...")
        server.wait_until_ready(timeout, cancelled=asked.is_set)
        if not asked.is_set():
            _say_ready(server)
        while not asked.wait(0.2):
            if server.process.poll() is not None:
                raise UserError(*server.explain(), code=Exit.CHECK_FAILED)
        note("stopping: open requests have 5 seconds to finish")


def _supervise(
    repository: Path, options: "ServerOptions", log: Path | None, timeout: float, asked: threading.Event
) -> None:
    """Serve until asked to stop, over the deaths of the server; the ports stay the same."""
    from retinaserve.scripts.server.supervisor import RestartPolicy, Supervisor
    from retinaserve.scripts.server.triton import TritonServer, check_repository, with_ports

    image = repository / "preprocess" / "warmup" / "picture.jpg"
    check_repository(repository)
    if not image.is_file():
        hint = "it is sent to see whether the server answers; without it, --no-restart serves"
        raise UserError(f"{image}: no such file", hint)
    options = with_ports(options)
    note(f"starting Triton on {repository} ...")
    supervisor = Supervisor(
        lambda: TritonServer(repository, options, log=log),
        image.read_bytes(),
        policy=RestartPolicy(ready=timeout, start_once=True),
        log=caution,
        started=_say_ready,
    )
    supervisor.run(asked)
    note("stopped")


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
