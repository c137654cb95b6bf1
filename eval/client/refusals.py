"""What a person is told when a server does not answer well: of one picture, or of the server itself.

image_error(error, timeout=30.0)                # ImageError("the image is empty: 0 bytes", "bad_image")
raise no_server(error, endpoint, "detector")    # nothing can be asked there
"""

import re

from retinaserve.eval.client.transport import Endpoint, ServerError
from retinaserve.training.detections import ImageError
from retinaserve.training.errors import UserError

WHERE = (
    "`retinaserve serve REPO` starts one and prints its addresses, usually grpc://HOST:8001 and http://HOST:8000"
)


def image_error(error: ServerError, *, timeout: float) -> ImageError:
    """Return what became of one picture that a living server did not answer."""
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
    """Say to a person why a server can't be used at all."""
    at = str(endpoint)
    match error.status:
        case "not_found" | "invalid":
            return UserError(
                f"{at} has no model {model!r}: {error.message}", "serve a repository made by `retinaserve build`"
            )
        case "timeout":
            return UserError(f"{at} took a connection and did not answer in time", WHERE)
        case "unavailable":
            return UserError(f"no Triton server answers at {at}: {error.message}", _where(error, endpoint))
    return UserError(f"{at}: {error.message}", WHERE)


def _where(error: ServerError, endpoint: Endpoint) -> str:
    if endpoint.tls:
        return "--ca names the authority of its certificate, --client-cert and --client-key who you are"
    if "Socket closed" in error.message:
        host = endpoint.address.rpartition(":")[0]
        return (
            f"gRPC usually has port 8001: {host}:8001; for HTTP write http://{endpoint.address}, for an encrypted "
            f"server grpcs://{endpoint.address}"
        )
    return WHERE
