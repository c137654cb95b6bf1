"""`serve`: the embedded Triton over a repository, in the foreground, until Ctrl-C."""

import signal
import threading
from contextlib import suppress
from pathlib import Path

import click

from scripts.triton import ServerOptions, TritonServer
from training.errors import Exit, UserError

READY = """\
HTTP      http://{http}
gRPC      {grpc}
metrics   {metrics}
log       {log}

Ask it from another terminal; the first shows a page to drop pictures on:

{web}

{predict}

{curl}

{python}
"""
WEB = "retinaserve web --server {grpc} --metrics {metrics}"
PREDICT = "retinaserve predict PICTURE.jpg --server {grpc}"
# Triton's binary extension: a JSON header, then the picture's bytes; the answer is JSON.
CURL = """\
f="PICTURE.jpg"; n=$(stat -c %s "$f")
h='{{"inputs":[{{"name":"image_bytes","shape":[1,'$n'],"datatype":"UINT8","parameters":{{"binary_data_size":'$n'}}}}]}}'
(printf %s "$h"; cat "$f") | curl -s -H "Inference-Header-Content-Length: ${{#h}}" \\
  --data-binary @- http://{http}/v2/models/detector/infer"""
PYTHON = """\
python - <<'EOF'
from pathlib import Path
from eval.client import Client
with Client("{grpc}") as client:
    print(client.predict([Path("PICTURE.jpg").read_bytes()])[0])
EOF"""


def ready_text(server: TritonServer) -> str:
    """Return the endpoints of a running server and four ways to ask it, to be pasted as they are."""
    urls = {"http": server.http_url, "grpc": server.grpc_url, "metrics": server.metrics_url}
    examples = {
        "web": WEB.format(**urls),
        "predict": PREDICT.format(**urls),
        "curl": CURL.format(**urls),
        "python": PYTHON.format(**urls),
    }
    return READY.format(**urls, **examples, log=server.log)


@click.command()
@click.argument("repository", type=click.Path(path_type=Path))
@click.option(
    "--host", default="127.0.0.1", help="Address to listen on; the embedded server predates fixes, keep it local."
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
@click.option("--log", type=click.Path(path_type=Path), help="Keep the server's log in this file.")
@click.option("--verbose", is_flag=True, help="Let the server log every request.")
def serve(
    repository: Path,
    host: str,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    threads: int,
    timeout: float,
    log: Path | None,
    verbose: bool,
) -> None:
    """Serve REPOSITORY with the embedded Triton until Ctrl-C."""
    if host not in ("127.0.0.1", "localhost", "::1"):
        click.secho(
            f"warning: {host} is open to others, and the embedded Triton 2.51 lacks later security fixes",
            fg="yellow",
            err=True,
        )
    options = ServerOptions(host, http_port, grpc_port, metrics_port, threads, verbose)
    asked = threading.Event()
    previous = {
        number: signal.signal(number, lambda *_: asked.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
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
    finally:
        for number, handler in previous.items():
            with suppress(ValueError):
                signal.signal(number, handler)
