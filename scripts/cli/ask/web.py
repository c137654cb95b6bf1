"""`web`: the page in a browser, served on loopback until Ctrl-C.

retinaserve web --server localhost:8001
"""

import contextlib
import ipaddress
import socket
from typing import TYPE_CHECKING

import click

from retinaserve.scripts.cli.options import SERVER_HELP, Protocol, protocol_option, timeout_option, tls_options
from retinaserve.scripts.cli.output import caution, name_next, note
from retinaserve.training.errors import Exit, UserError

if TYPE_CHECKING:
    from retinaserve.eval.client.transport import Endpoint, TlsFiles
    from retinaserve.eval.web.gateway import Gateway

CLOSING_SECONDS = 2  # a page that is open must not hold up Ctrl-C
MOST_CONNECTIONS = 64


@click.command()
@click.option("--server", metavar="HOST:PORT", default="localhost:8001", help=f"{SERVER_HELP}.")
@protocol_option
@click.option(
    "--metrics",
    metavar="HOST:PORT",
    help="The server's metrics.  [default: port 8002 beside its usual one]",
)
@click.option("--host", default="127.0.0.1", help="Address the page listens on; it has no password.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, help="Port of the page; 0 takes a free one.")
@click.option("--allow-host", "names", multiple=True, help="A name, besides localhost, the page may be called by.")
@timeout_option
@tls_options
@click.option("--open", "show", is_flag=True, help="Open the page in the browser.")
def web(
    server: str,
    protocol: Protocol | None,
    metrics: str | None,
    host: str,
    port: int,
    names: tuple[str, ...],
    timeout: float,
    tls: "TlsFiles | None",
    show: bool,
) -> None:
    """Show a page to drop images on: their boxes, times, and how the server is.

    A server that is not there yet is waited for: the page says so and goes on when it answers.
    """
    import uvicorn

    from retinaserve.eval.web.app import create_app
    from retinaserve.eval.web.gateway import Gateway, metrics_url

    gateway = Gateway(server, protocol=protocol, timeout=timeout, tls=tls)
    gateway.metrics = metrics_url(metrics) if metrics else usual_metrics(gateway.endpoint)
    listener = listen(host, port)
    with contextlib.closing(listener):
        _warn(gateway, host)
        address = page_url(host, listener.getsockname()[1])
        click.echo(f"page      {address}")
        click.echo(f"server    {gateway.endpoint}")
        note("Ctrl-C ends it; the server goes on.")
        name_next(f"open {address} and drop an image on it")
        config = uvicorn.Config(
            create_app(gateway, hosts=frozenset(name.lower() for name in names)),
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=CLOSING_SECONDS,
        )
        if show:
            click.launch(address)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
    note("the page is closed")


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket. Raises UserError for an address that can't be used."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        message = f"--host {host!r} is no address of this machine: {error.strerror}"
        raise UserError(message, "127.0.0.1 is for this machine alone", code=Exit.USAGE) from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # uvicorn listens later; this claims the port at once, so that a second page is refused here.
        listener.listen(MOST_CONNECTIONS)
    except OSError as error:
        listener.close()
        hint = "choose another with --port, or stop what listens there; --port 0 takes a free one"
        raise UserError(f"{host}:{port} can't be used: {error.strerror}", hint, code=Exit.USAGE) from None
    return listener


def usual_metrics(endpoint: "Endpoint") -> str:
    """Return where a server at its usual port has its metrics; nothing for another, which may not be alone."""
    from retinaserve.eval.client.transport import PORTS
    from retinaserve.eval.web.gateway import METRICS_PORT, metrics_url

    if endpoint.port != PORTS[endpoint.protocol]:
        return ""
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return metrics_url(f"{host}:{METRICS_PORT}")


def page_url(host: str, port: int) -> str:
    """Return the address to open: of this machine where the page listens on all."""
    if host in ("0.0.0.0", "::", ""):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _warn(gateway: "Gateway", host: str) -> None:
    """Say what is not as it should be, though the page starts."""
    import asyncio

    async def look() -> dict[str, str]:
        await gateway.open()
        try:
            return await gateway.status()
        finally:
            await gateway.close()

    if not is_loopback(host):
        caution(f"warning: everybody who reaches {host} can use the page and the server behind it")
    status = asyncio.run(look())
    if status["state"] != "ready":
        caution(f"warning: {status['message']}")
        note(f"         {status['hint']}; the page waits for it")


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
