"""What a ServerError means to who sent a picture, or to who named the server.

judged(error, timeout=30)                       # ImageError, or None: it is no matter of this picture
raise no_server(error, endpoint, "detector")    # UserError, with where to look
"""

import re

from eval.detections import ImageError
from eval.transport import Endpoint, ServerError
from training.errors import UserError

WHERE = (
    "`retinaserve serve REPO` starts one and prints its addresses, usually grpc://HOST:8001 and http://HOST:8000"
)


def judged(error: ServerError, *, timeout: float) -> ImageError | None:
    """Return what is wrong with one picture's request; None when there is no such model."""
    message = re.sub(r"^(in ensemble '[^']*', |\[request id: [^]]*\] )+", "", error.message)
    match error.status:
        case "invalid":
            return ImageError(message, "bad_image")
        case "timeout":
            return ImageError(f"no answer in {timeout:g} s", "timeout")
        case "internal":
            return ImageError(f"the server failed: {message}", "server")
        case "unavailable":
            return ImageError(f"the server is overloaded: {message}", "overloaded")
    return None


def not_ready(endpoint: Endpoint, model: str, *, waited: float) -> UserError:
    """Return the error for a server that is there, and whose model is not."""
    after = f" after {waited:g} s" if waited else ""
    return UserError(
        f"{endpoint}: model {model!r} is not ready{after}", "see the server's log; it may still be loading"
    )


def no_server(error: ServerError, endpoint: Endpoint, model: str) -> UserError:
    """Return the error for a server that does not answer as one should."""
    match error.status:
        case "not_found" | "invalid":
            return UserError(
                f"{endpoint} has no model {model!r}: {error.message}",
                "serve a repository made by `retinaserve build`",
            )
        case "timeout":
            return UserError(f"{endpoint} took a connection and did not answer in time", WHERE)
        case "unavailable":
            return UserError(f"no Triton server answers at {endpoint}: {error.message}", _where(error, endpoint))
    return UserError(f"{endpoint}: {error.message}", WHERE)


def _where(error: ServerError, endpoint: Endpoint) -> str:
    if endpoint.tls:
        return "--ca names the authority of its certificate, --client-cert and --client-key who you are"
    if "Socket closed" in error.message:
        return f"if it is encrypted, write grpcs://{endpoint.address}; {WHERE}"
    return WHERE
