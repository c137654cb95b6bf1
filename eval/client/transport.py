"""One request to a Triton server and its answer, over gRPC or HTTP, with one taxonomy of errors.

    transport = Transport(Endpoint.parse("localhost:8001"), concurrency=8)
    result = await transport.infer("detector", jpeg, timeout=10.0)
    result.as_numpy("boxes")

Retries are the client's. Everything is asyncio: the blocking HTTP client of tritonclient shares gevent pools that
no second thread may touch.
"""

import asyncio
import gc
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import numpy as np

from retinaserve.training.detections import ImageError
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.spec import IMAGE_BYTES

Protocols = Literal["grpc", "http"]
Status = Literal["unavailable", "invalid", "not_found", "timeout", "internal"]
Call = Callable[..., Awaitable[Any]]  # a method of tritonclient's asyncio clients
ADMIN_HEADER = "retinaserve-admin"  # carries the token of `serve --admin-token-file`
PORTS: Mapping[Protocols, int] = {"grpc": 8001, "http": 8000}
# Encrypted, by scheme. Triton speaks TLS on gRPC alone; HTTPS is that of a proxy in front of it.
SECURE: Mapping[str, tuple[Protocols, int]] = {"grpcs": ("grpc", 8001), "https": ("http", 443)}

START_HINT = (
    "`retinaserve serve REPO` starts one and prints its addresses, usually grpc://HOST:8001 and http://HOST:8000"
)

_GRPC_STATUS: Mapping[str, Status] = {
    "StatusCode.UNAVAILABLE": "unavailable",
    "StatusCode.INVALID_ARGUMENT": "invalid",
    "StatusCode.NOT_FOUND": "not_found",
    "StatusCode.DEADLINE_EXCEEDED": "timeout",
}
# What http_server.cc of Triton makes of its own codes; INVALID_ARG shares 400 with UNKNOWN.
_HTTP_STATUS: Mapping[str, Status] = {"503": "unavailable", "400": "invalid", "404": "not_found"}

_GRPC_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),  # as over HTTP: a proxy of the desktop seldom reaches an inference server
    ("grpc.initial_reconnect_backoff_ms", 100),  # a server that is starting is asked again soon
    ("grpc.max_reconnect_backoff_ms", 500),
)


class ServerError(Exception):
    """A call the server or the network did not answer well."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        # Of an ensemble with a step that ended without an answer; Triton calls it the request's fault.
        self.status: Status = "internal" if "unexpected deadlock" in message else status
        self.message = message


@dataclass(frozen=True)
class TlsFiles:
    """PEM files of a client: whom it trusts (the system's authorities by default), and who it is, if asked."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise UserError("a client's certificate and key belong together", code=Exit.USAGE)
        try:
            self.context()
        except OSError as error:
            names = ", ".join(str(path) for path in (self.ca, self.certificate, self.key) if path)
            reason = error.strerror or str(error)
            raise UserError(f"{names}: {reason}", "PEM files are expected", code=Exit.USAGE) from None

    def context(self) -> ssl.SSLContext:
        """Return the same as an SSL context. Raises OSError where a file is missing or is none."""
        context = ssl.create_default_context(cafile=self.ca)
        if self.certificate:
            context.load_cert_chain(self.certificate, self.key)
        return context


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens and what it speaks there; `tls` is None where that is not encrypted."""

    protocol: Protocols
    host: str
    port: int
    tls: TlsFiles | None = None

    @classmethod
    def parse(cls, server: str, protocol: Protocols | None = None, *, tls: TlsFiles | None = None) -> "Endpoint":
        """Read HOST:PORT, or SCHEME://HOST:PORT of grpc, http, grpcs or https; else `protocol`, or gRPC.

        `tls` is for the last two; without it the system's authorities are trusted.
        """
        wanted = "HOST:PORT, or grpc://, http://, grpcs:// or https:// before it is expected"
        scheme, _, rest = server.rpartition("://")
        chosen = scheme or protocol or "grpc"
        secure = SECURE.get(chosen)
        spoken: Protocols = secure[0] if secure else ("http" if chosen == "http" else "grpc")
        default = secure[1] if secure else PORTS[spoken]
        if (not secure and chosen not in PORTS) or (protocol and scheme and spoken != protocol):
            raise UserError(f"server {server!r}: cannot speak {chosen!r} to it", wanted, code=Exit.USAGE)
        if tls and not secure:
            raise UserError(
                f"server {server!r} is not encrypted, and certificates were given",
                f"grpcs://{rest} or https://{rest} is",
                code=Exit.USAGE,
            )
        try:
            parts = urlsplit(f"//{rest}")
            host, port = parts.hostname, parts.port or default
        except ValueError:
            host, port = None, 0
        if not host or parts.path.strip("/"):
            raise UserError(f"server {server!r} is not an address", wanted, code=Exit.USAGE)
        return cls(spoken, host, port, (tls or TlsFiles()) if secure else None)

    @property
    def address(self) -> str:
        """host:port, with the brackets IPv6 needs."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.protocol}{'s' if self.tls else ''}://{self.address}"


def image_error(error: ServerError, *, timeout: float) -> ImageError:
    """Return why one image was not answered by a server that lives."""
    message = re.sub(r"^(in ensemble '[^']*', |\[request id: [^]]*\] )+", "", error.message)
    match error.status:
        case "invalid":
            return ImageError(message, "bad_image")
        case "timeout":
            return ImageError(f"no answer in {timeout:g} s", "timeout")
        case "unavailable":
            return ImageError(f"the server is overloaded: {message}", "overloaded")
    return ImageError(f"the server failed: {message}", "server")


def no_server(error: ServerError, endpoint: Endpoint, model: str) -> UserError:
    """Return why nothing can be asked of a server."""
    at = str(endpoint)
    match error.status:
        case "not_found" | "invalid":
            return UserError(
                f"{at} has no model {model!r}: {error.message}", "serve a repository made by `retinaserve build`"
            )
        case "timeout":
            return UserError(f"{at} took a connection and did not answer in time", START_HINT)
        case "unavailable":
            return UserError(f"no Triton server answers at {at}: {error.message}", _hint(error, endpoint))
    return UserError(f"{at}: {error.message}", START_HINT)


def _hint(error: ServerError, endpoint: Endpoint) -> str:
    if endpoint.tls:
        return "--ca names the authority of its certificate, --client-cert and --client-key who you are"
    if "Socket closed" in error.message:
        host = endpoint.address.rpartition(":")[0]
        return (
            f"gRPC usually has port 8001: {host}:8001; for HTTP write http://{endpoint.address}, for an encrypted "
            f"server grpcs://{endpoint.address}"
        )
    return START_HINT


class Transport:
    """The calls made to a server, the same over both protocols; every one raises ServerError.

    It must be made, used and closed in one running event loop.
    """

    def __init__(self, endpoint: Endpoint, *, concurrency: int, admin_token: str | None = None) -> None:
        """`admin_token` is sent with load, unload and index, which `serve` keeps for administrators."""
        self._wire = _Grpc(endpoint) if endpoint.protocol == "grpc" else _Http(endpoint, concurrency)
        self._client = self._wire.client
        self._admin = {self._wire.admin_header: admin_token} if admin_token else None

    async def live(self, *, timeout: float) -> bool:
        """Return whether a Triton answers at all."""
        return bool(await self._wire.call(self._client.is_server_live, timeout))

    async def ready(self, model: str, *, timeout: float) -> bool:
        """Return whether the model takes requests."""
        return bool(await self._wire.call(self._client.is_model_ready, timeout, model))

    async def version(self, *, timeout: float) -> str:
        """Return the server's name and version."""
        metadata = await self._wire.read(self._client.get_server_metadata, timeout)
        return f"{metadata.get('name', 'unknown')} {metadata.get('version', '')}".strip()

    async def config(self, model: str, *, timeout: float) -> dict[str, Any]:
        """Return the model's config.pbtxt as a dict."""
        answer: dict[str, Any] = await self._wire.read(self._client.get_model_config, timeout, model)
        config: dict[str, Any] = answer.get("config", answer)  # gRPC's message has it as a field
        return config

    async def statistics(self, *, timeout: float) -> list[dict[str, Any]]:
        """Return the server's statistics, an entry per model and version."""
        answer = await self._wire.read(self._client.get_inference_statistics, timeout)
        models: list[dict[str, Any]] = answer.get("model_stats", [])
        return models

    async def index(self, *, timeout: float) -> list[dict[str, Any]]:
        """Return name, version, state and reason of each model in the server's repositories."""
        answer = await self._wire.read(self._client.get_model_repository_index, timeout, headers=self._admin)
        models: list[dict[str, Any]] = answer.get("models", []) if isinstance(answer, dict) else answer
        return models

    async def infer(self, model: str, image: bytes, *, timeout: float) -> Any:
        """Send one encoded image; return tritonclient's InferResult. After `timeout` the server drops it too."""
        pixels = np.frombuffer(image, np.uint8)[None]  # (1, n_bytes): one image per request
        tensor = self._wire.input(IMAGE_BYTES, pixels.shape, "UINT8")
        tensor.set_data_from_numpy(pixels)
        queue_timeout = max(1, round(timeout * 1e6))  # Triton's unit is microseconds; 0 would be no limit
        return await self._wire.call(self._client.infer, timeout, model, [tensor], timeout=queue_timeout)

    async def load(self, model: str, *, timeout: float) -> None:
        """Have the server read a model's config and load what it names; the old versions serve until then."""
        await self._wire.call(self._client.load_model, timeout, model, headers=self._admin)

    async def unload(self, model: str, *, timeout: float) -> None:
        """Have the server drop a model."""
        await self._wire.call(self._client.unload_model, timeout, model, headers=self._admin)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()
        # A gRPC call that failed and its error hold each other, and the connection with them.
        gc.collect()


class _Grpc:
    # Triton puts a prefix before the name that was configured.
    admin_header = f"triton-grpc-protocol-{ADMIN_HEADER}"

    def __init__(self, endpoint: Endpoint) -> None:
        from tritonclient.grpc import aio

        self.input = aio.InferInput
        tls = endpoint.tls or TlsFiles()
        self.client = aio.InferenceServerClient(
            endpoint.address,
            ssl=endpoint.tls is not None,
            root_certificates=tls.ca,
            certificate_chain=tls.certificate,
            private_key=tls.key,
            channel_args=list(_GRPC_OPTIONS),
        )

    async def call(self, method: Call, seconds: float, *args: Any, **options: Any) -> Any:
        from tritonclient.utils import InferenceServerException

        try:
            return await method(*args, client_timeout=seconds, **options)
        except InferenceServerException as error:
            status = _GRPC_STATUS.get(error.status() or "", "internal")
            raise ServerError(status, _reason(error.message() or str(error.status()))) from None

    async def read(self, method: Call, seconds: float, *args: Any, **options: Any) -> Any:
        """Call a method whose answer is a message, and return that as JSON's types."""
        return await self.call(method, seconds, *args, as_json=True, **options)


def _reason(message: str) -> str:
    """Shorten what gRPC says of a connection that did not come about.

    "failed to connect to all addresses; last error: UNKNOWN: ipv4:...: Connection refused"; for certificates
    "...: Tls handshake failed (...): SSL_ERROR_SSL: ...:CERTIFICATE_VERIFY_FAILED: self signed certificate: OK"
    """
    if not message.startswith(("failed to connect", "errors resolving")):
        return message
    if "handshake failed" in message:
        return f"no encrypted connection: {message.rsplit(':', 2)[-2].strip()}"
    return message.rsplit(": ", 1)[-1].rstrip("]")


class _Http:
    admin_header = ADMIN_HEADER

    def __init__(self, endpoint: Endpoint, concurrency: int) -> None:
        from tritonclient.http import aio

        self.input = aio.InferInput
        # The session's own time limit is off: every call carries one, as over gRPC.
        self.client = aio.InferenceServerClient(
            endpoint.address,
            conn_limit=max(1, concurrency),
            conn_timeout=None,
            ssl=endpoint.tls is not None,
            ssl_context=endpoint.tls.context() if endpoint.tls else None,
        )

    async def call(self, method: Call, seconds: float, *args: Any, **options: Any) -> Any:
        from aiohttp import ClientError, ClientResponseError
        from tritonclient.utils import InferenceServerException

        try:
            # Not wait_for: before Python 3.12 it loses a cancellation that meets an answer.
            async with asyncio.timeout(seconds):
                return await method(*args, **options)
        except TimeoutError:
            raise ServerError("timeout", f"no answer in {seconds:g} s") from None
        except InferenceServerException as error:
            status = _HTTP_STATUS.get(error.status() or "", "internal")
            raise ServerError(status, error.message() or str(error.status())) from None
        except (ClientResponseError, ValueError):
            raise ServerError("unavailable", "what answers there is not Triton's HTTP") from None
        except (ClientError, OSError) as error:
            message = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise ServerError("unavailable", message) from None

    read = call
