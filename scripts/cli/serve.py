"""`serve`: the embedded Triton over a repository, in the foreground, until Ctrl-C."""

import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from retinaserve.scripts.cli.options import FILE, PATH
from retinaserve.training.errors import Exit, UserError

if TYPE_CHECKING:
    from retinaserve.scripts.server.protection import Tls
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


@click.command()
@click.argument("repository", type=PATH)
@click.option("--host", default="127.0.0.1", help="Address to listen on; another than loopback needs --expose.")
@click.option(
    "--expose", is_flag=True, help="Allow others in, although the embedded Triton 2.51 lacks later fixes."
)
@click.option("--http-port", type=click.IntRange(0, 65535), default=8000, help="HTTP port; 0 takes a free one.")
@click.option("--grpc-port", type=click.IntRange(0, 65535), default=8001, help="gRPC port; 0 takes a free one.")
@click.option(
    "--metrics-port", type=click.IntRange(0, 65535), default=8002, help="Metrics port; 0 takes a free one."
)
@click.option(
    "--threads", type=click.IntRange(0, 1024), default=0, help="Threads for decoding and inference; 0: all cores."
)
@click.option(
    "--timeout", type=click.FloatRange(min=1), default=120.0, help="Seconds to wait until the models are ready."
)
@click.option("--reload", is_flag=True, help="Let `retinaserve models` change versions; needs --admin-token-file.")
@click.option(
    "--restart/--no-restart",
    default=True,
    help="Start the server again when it, or one of its processes, dies or answers no image: docs/operations.md.",
)
@click.option(
    "--tls-cert", type=FILE, help="PEM certificate: gRPC is encrypted, HTTP and metrics stay on loopback."
)
@click.option("--tls-key", type=FILE, help="PEM private key of --tls-cert.")
@click.option("--tls-client-ca", type=FILE, help="PEM authority: only clients with its certificate are served.")
@click.option(
    "--admin-token-file", type=FILE, help="Token that opens the administrative calls; without it they are closed."
)
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
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    threads: int,
    timeout: float,
    reload: bool,
    restart: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    admin_token_file: Path | None,
    trace: tuple[str, ...],
    log: Path | None,
    verbose: bool,
) -> None:
    """Serve REPOSITORY with the embedded Triton until Ctrl-C."""
    from retinaserve.scripts.server.protection import LOOPBACK, check_exposure, read_token
    from retinaserve.scripts.server.triton import ServerOptions

    check_exposure(host, expose=expose)
    if host not in LOOPBACK:
        click.secho(
            f"warning: {host} is open to others, and the embedded Triton 2.51 lacks later security fixes",
            fg="yellow",
            err=True,
        )
    if reload and not admin_token_file:
        raise click.UsageError("--reload needs --admin-token-file: who may load models may run code")
    options = ServerOptions(
        host,
        http_port,
        grpc_port,
        metrics_port,
        threads,
        verbose,
        reload,
        tls=tls_of(tls_cert, tls_key, tls_client_ca),
        admin_token=read_token(admin_token_file) if admin_token_file else None,
        trace=trace,
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


def _serve_once(
    repository: Path, options: "ServerOptions", log: Path | None, timeout: float, asked: threading.Event
) -> None:
    from retinaserve.scripts.server.triton import TritonServer

    with TritonServer(repository, options, log=log) as server:
        click.echo(f"starting Triton on {repository} ...", err=True)
        server.wait_until_ready(timeout, cancelled=asked.is_set)
        if not asked.is_set():
            click.secho("ready", fg="green", err=True)
            click.echo(ready_text(server))
        while not asked.wait(0.2):
            if server.process.poll() is not None:
                raise UserError(*server.explain(), code=Exit.CHECK_FAILED)
        click.echo("stopping: open requests have 5 seconds to finish", err=True)


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

    def warn(text: str) -> None:
        click.secho(text, fg="yellow", err=True)

    def started(server: "TritonServer") -> None:
        click.secho("ready", fg="green", err=True)
        click.echo(ready_text(server))

    options = with_ports(options)
    click.echo(f"starting Triton on {repository} ...", err=True)
    supervisor = Supervisor(
        lambda: TritonServer(repository, options, log=log),
        image.read_bytes(),
        policy=RestartPolicy(ready=timeout, start_once=True),
        log=warn,
        started=started,
    )
    supervisor.run(asked)
    click.echo("stopped", err=True)
