"""One request to a Triton server and its answer, over gRPC or HTTP, with one taxonomy of errors.

    transport = open_transport(Endpoint.parse("localhost:8001"), concurrency=8)
    result = await transport.infer("detector", jpeg, timeout=10.0)
    result.as_numpy("boxes")

It retries nothing and knows nothing of detections; both are the client's. Everything is asyncio: the blocking
HTTP client of tritonclient shares gevent pools that no second thread may touch.
"""

import asyncio
import gc
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self
from urllib.parse import urlsplit

import numpy as np

from retinaserve.training.errors import Exit, UserError
from retinaserve.training.spec import IMAGE_BYTES

Protocols = Literal["grpc", "http"]
Status = Literal["unavailable", "invalid", "not_found", "timeout", "internal"]
ADMIN_HEADER = "retinaserve-admin"  # carries the token of `serve --admin-token-file`
PORTS: Mapping[Protocols, int] = {"grpc": 8001, "http": 8000}
# Encrypted, by scheme. Triton speaks TLS on gRPC alone; HTTPS is that of a proxy in front of it.
SECURE: Mapping[str, tuple[Protocols, int]] = {"grpcs": ("grpc", 8001), "https": ("http", 443)}

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
        self.status = status
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
    def parse(cls, server: str, protocol: Protocols | None = None, *, tls: TlsFiles | None = None) -> Self:
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


class Transport(Protocol):
    """The calls made to a server; every one raises ServerError."""

    async def live(self, *, timeout: float) -> bool:
        """Say whether a Triton answers at all."""

    async def ready(self, model: str, *, timeout: float) -> bool:
        """Say whether the model takes requests."""

    async def version(self, *, timeout: float) -> str:
        """Return the server's name and version."""

    async def config(self, model: str, *, timeout: float) -> dict[str, Any]:
        """Return the model's config.pbtxt as a dict."""

    async def statistics(self, *, timeout: float) -> list[dict[str, Any]]:
        """Return the server's statistics, an entry a model and version."""

    async def index(self, *, timeout: float) -> list[dict[str, Any]]:
        """Return name, version, state and reason of each model in the server's repositories."""

    async def infer(self, model: str, image: bytes, *, timeout: float) -> Any:
        """Send one encoded picture; return tritonclient's InferResult. After `timeout` the server drops it too."""

    async def load(self, model: str, *, timeout: float) -> None:
        """Have the server read a model's config and load what it names; the old versions serve until then."""

    async def unload(self, model: str, *, timeout: float) -> None:
        """Have the server drop a model."""

    async def close(self) -> None:
        """Close every connection."""


def open_transport(endpoint: Endpoint, *, concurrency: int, admin_token: str | None = None) -> Transport:
    """Open a transport; it must be called, used and closed in one running event loop.

    `admin_token` is sent with load, unload and index, which `serve` keeps for administrators.
    """
    if endpoint.protocol == "grpc":
        return _Grpc(endpoint, admin_token)
    return _Http(endpoint, concurrency, admin_token)


def _one_image(image: bytes, infer_input: Any) -> list[Any]:
    pixels = np.frombuffer(image, np.uint8)[None]  # (1, n_bytes): one picture a request
    tensor = infer_input(IMAGE_BYTES, pixels.shape, "UINT8")
    tensor.set_data_from_numpy(pixels)
    return [tensor]


def _microseconds(timeout: float) -> int:
    """A request's time in a queue, as Triton counts it; 0 would be no limit."""
    return max(1, round(timeout * 1e6))


def _named(metadata: Mapping[str, Any]) -> str:
    return f"{metadata.get('name', 'unknown')} {metadata.get('version', '')}".strip()


class _Grpc:
    def __init__(self, endpoint: Endpoint, admin_token: str | None) -> None:
        from tritonclient.grpc import aio

        # Triton puts a prefix before the name that was configured.
        self._admin = {f"triton-grpc-protocol-{ADMIN_HEADER}": admin_token} if admin_token else None
        self._input = aio.InferInput
        tls = endpoint.tls or TlsFiles()
        self._client = aio.InferenceServerClient(
            endpoint.address,
            ssl=endpoint.tls is not None,
            root_certificates=tls.ca,
            certificate_chain=tls.certificate,
            private_key=tls.key,
            channel_args=list(_GRPC_OPTIONS),
        )

    async def live(self, *, timeout: float) -> bool:
        return bool(await self._call(self._client.is_server_live(client_timeout=timeout)))

    async def ready(self, model: str, *, timeout: float) -> bool:
        return bool(await self._call(self._client.is_model_ready(model, client_timeout=timeout)))

    async def version(self, *, timeout: float) -> str:
        call = self._client.get_server_metadata(as_json=True, client_timeout=timeout)
        return _named(await self._call(call))

    async def config(self, model: str, *, timeout: float) -> dict[str, Any]:
        call = self._client.get_model_config(model, as_json=True, client_timeout=timeout)
        answer: dict[str, Any] = (await self._call(call))["config"]
        return answer

    async def statistics(self, *, timeout: float) -> list[dict[str, Any]]:
        call = self._client.get_inference_statistics(as_json=True, client_timeout=timeout)
        answer: list[dict[str, Any]] = (await self._call(call)).get("model_stats", [])
        return answer

    async def infer(self, model: str, image: bytes, *, timeout: float) -> Any:
        inputs = _one_image(image, self._input)
        call = self._client.infer(model, inputs, client_timeout=timeout, timeout=_microseconds(timeout))
        return await self._call(call)

    async def load(self, model: str, *, timeout: float) -> None:
        await self._call(self._client.load_model(model, headers=self._admin, client_timeout=timeout))

    async def unload(self, model: str, *, timeout: float) -> None:
        await self._call(self._client.unload_model(model, headers=self._admin, client_timeout=timeout))

    async def index(self, *, timeout: float) -> list[dict[str, Any]]:
        call = self._client.get_model_repository_index(headers=self._admin, as_json=True, client_timeout=timeout)
        models: list[dict[str, Any]] = (await self._call(call)).get("models", [])
        return models

    async def close(self) -> None:
        await self._client.close()
        # A call that failed and its error hold each other, and the connection with them.
        gc.collect()

    @staticmethod
    async def _call(call: Any) -> Any:
        from tritonclient.utils import InferenceServerException

        try:
            return await call
        except InferenceServerException as error:
            status = _GRPC_STATUS.get(error.status() or "", "internal")
            raise ServerError(status, _reason(error.message() or str(error.status()))) from None


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
    def __init__(self, endpoint: Endpoint, concurrency: int, admin_token: str | None) -> None:
        from tritonclient.http import aio

        self._admin = {ADMIN_HEADER: admin_token} if admin_token else None
        self._input = aio.InferInput
        # The session's own time limit is off: every call carries one, as over gRPC.
        self._client = aio.InferenceServerClient(
            endpoint.address,
            conn_limit=max(1, concurrency),
            conn_timeout=None,
            ssl=endpoint.tls is not None,
            ssl_context=endpoint.tls.context() if endpoint.tls else None,
        )

    async def live(self, *, timeout: float) -> bool:
        return bool(await self._call(self._client.is_server_live(), timeout))

    async def ready(self, model: str, *, timeout: float) -> bool:
        return bool(await self._call(self._client.is_model_ready(model), timeout))

    async def version(self, *, timeout: float) -> str:
        return _named(await self._call(self._client.get_server_metadata(), timeout))

    async def config(self, model: str, *, timeout: float) -> dict[str, Any]:
        answer: dict[str, Any] = await self._call(self._client.get_model_config(model), timeout)
        return answer

    async def statistics(self, *, timeout: float) -> list[dict[str, Any]]:
        answer = await self._call(self._client.get_inference_statistics(), timeout)
        models: list[dict[str, Any]] = answer.get("model_stats", [])
        return models

    async def infer(self, model: str, image: bytes, *, timeout: float) -> Any:
        inputs = _one_image(image, self._input)
        return await self._call(self._client.infer(model, inputs, timeout=_microseconds(timeout)), timeout)

    async def load(self, model: str, *, timeout: float) -> None:
        await self._call(self._client.load_model(model, headers=self._admin), timeout)

    async def unload(self, model: str, *, timeout: float) -> None:
        await self._call(self._client.unload_model(model, headers=self._admin), timeout)

    async def index(self, *, timeout: float) -> list[dict[str, Any]]:
        models: list[dict[str, Any]] = await self._call(
            self._client.get_model_repository_index(headers=self._admin), timeout
        )
        return models

    async def close(self) -> None:
        await self._client.close()

    @staticmethod
    async def _call(call: Any, timeout: float) -> Any:
        from aiohttp import ClientError, ClientResponseError
        from tritonclient.utils import InferenceServerException

        try:
            async with asyncio.timeout(timeout):
                return await call
        except TimeoutError:
            raise ServerError("timeout", f"no answer in {timeout:g} s") from None
        except InferenceServerException as error:
            status = _HTTP_STATUS.get(error.status() or "", "internal")
            raise ServerError(status, error.message() or str(error.status())) from None
        except (ClientResponseError, ValueError):
            raise ServerError("unavailable", "what answers there is not Triton's HTTP") from None
        except (ClientError, OSError) as error:
            message = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise ServerError("unavailable", message) from None
