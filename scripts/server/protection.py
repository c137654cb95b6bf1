"""What guards a Triton server: TLS on gRPC, a token for the administrative calls, loopback for what stays open.

    flags = [*Tls(cert, key, client_ca).flags(), *admin_flags(read_token(path))]

The flags are tritonserver's own and the same for 2.51 and 26.x, so the container's start script passes them too
(scripts/deploy/container/start.sh; a test compares both). Triton itself has no TLS on HTTP, no users and no rate
limits: docs/operations.md says who does that.
"""

import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from retinaserve.eval.client.transport import ADMIN_HEADER
from retinaserve.training.errors import Exit, UserError

# What an operator calls and a client of the detector never does. Registering shared memory is how the python
# backend of Triton before 25.07 was taken over from outside (CVE-2025-23319, -23320, -23334).
ADMIN_APIS = ("shared-memory", "model-repository", "trace", "logging")
GRPC_ADMIN_HEADER = f"triton-grpc-protocol-{ADMIN_HEADER}"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Triton splits the flag at commas, colons and equal signs.
TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,}")


@dataclass(frozen=True)
class Tls:
    """PEM files of the gRPC endpoint; with `client_ca`, only clients whose certificate it signed are served."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def __post_init__(self) -> None:
        check_pem(self.certificate, "CERTIFICATE")
        check_pem(self.key, "PRIVATE KEY")
        if self.client_ca:
            check_pem(self.client_ca, "CERTIFICATE")

    def flags(self) -> list[str]:
        """Return tritonserver's flags."""
        flags = [
            "--grpc-use-ssl=true",
            f"--grpc-server-cert={self.certificate.resolve()}",
            f"--grpc-server-key={self.key.resolve()}",
        ]
        if self.client_ca:
            # After --grpc-use-ssl: the later of the two decides, and `false` of either turns encryption off.
            flags += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={self.client_ca.resolve()}"]
        return flags


def check_pem(path: Path, label: str) -> None:
    """Raise UserError unless the file holds a PEM block of this kind; it is not judged any further."""
    if not re.search(rf"-----BEGIN ([A-Z]+ )?{label}-----", _read(path, "a PEM file is expected")):
        raise UserError(f"{path} holds no {label.lower()}", "a PEM file is expected", code=Exit.USAGE)


def read_token(path: Path) -> str:
    """Return the administrator's token, the file's only line. Raises UserError when it is none."""
    token = _read(path, "a file with the token is expected").strip()
    if not TOKEN.fullmatch(token):
        raise UserError(
            f"{path} holds no usable token: 16 or more of A-Z a-z 0-9 . _ ~ + / - on one line are expected",
            "make one with: openssl rand -hex 32",
            code=Exit.USAGE,
        )
    return token


def _read(path: Path, expected: str) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", expected, code=Exit.USAGE) from None


def admin_flags(token: str | None, *, reload: bool = False) -> list[str]:
    """Return the flags that close the administrative calls to all who don't send the token; None closes them.

    `reload` without a token leaves the calls open that change versions, for whom the server's address lets in.
    """
    apis = [api for api in ADMIN_APIS if token or not reload or api != "model-repository"]
    token = token or secrets.token_urlsafe(32)  # nobody knows it
    group = f"{','.join(apis)}:{ADMIN_HEADER}={token}"
    return [f"--http-restricted-api={group}", f"--grpc-restricted-protocol={group}"]


def check_exposure(host: str, *, expose: bool) -> None:
    """Raise UserError for an address that others reach, unless that was asked for."""
    if host not in LOOPBACK and not expose:
        raise UserError(
            f"--host {host} opens a server to others that lacks Triton's security fixes since 2.51",
            "add --expose if that network is trusted; docs/serving.md has the server for others",
            code=Exit.USAGE,
        )
