"""TLS, mutual TLS and the administrative calls, on the embedded server: what must not work does not."""

import json
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from retinaserve.eval.client.client import Client
from retinaserve.eval.client.transport import TlsFiles
from retinaserve.scripts.server.protection import (
    ADMIN_APIS,
    ADMIN_HEADER,
    GRPC_ADMIN_HEADER,
    LOOPBACK,
    Tls,
    admin_flags,
    check_exposure,
    read_token,
)
from retinaserve.scripts.server.triton import ServerOptions, TritonServer
from retinaserve.training.detections import ImageError
from retinaserve.training.errors import UserError
from tests.certificates import Pair, issue
from tests.cli import invoke
from tests.eval.web.web_server import ask, run_web
from tests.images import checker, encode
from tests.tls_proxy import EncryptingProxy

PICTURE = encode(checker(300, 200))
TOKEN = "an-administrators-token-0123"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Pair:
    return issue(folder, "authority")


@pytest.fixture(scope="module")
def own(folder: Path, authority: Pair) -> Pair:
    return issue(folder, "server", authority)


@pytest.fixture(scope="module")
def client_pair(folder: Path, authority: Pair) -> Pair:
    return issue(folder, "client", authority)


@pytest.fixture(scope="module")
def stranger(folder: Path) -> Pair:
    """Somebody with a certificate of their own making."""
    return issue(folder, "stranger")


@pytest.fixture(scope="module")
def mutual(repository: Path, authority: Pair, own: Pair) -> Iterator[TritonServer]:
    """A server that speaks only to clients of the authority, and whose administrators have a token."""
    tls = Tls(own.certificate, own.key, authority.certificate)
    options = ServerOptions.free_ports(tls=tls, admin_token=TOKEN)
    with TritonServer(repository, options) as running:
        running.wait_until_ready(60)
        yield running


@pytest.mark.server
def test_a_client_with_a_certificate_is_served(
    mutual: TritonServer, authority: Pair, client_pair: Pair, tmp_path: Path
) -> None:
    tls = TlsFiles(authority.certificate, client_pair.certificate, client_pair.key)
    with Client(mutual.grpc_url, tls=tls) as client:
        (found,) = client.predict([PICTURE])
        assert len(found) > 0 and str(client.endpoint) == mutual.grpc_url
    (tmp_path / "a.jpg").write_bytes(PICTURE)
    options = ["--ca", authority.certificate, "--client-cert", client_pair.certificate]
    arguments = ["predict", tmp_path / "a.jpg", "--server", mutual.grpc_url, "--score", "0", *options]
    result = invoke(*arguments, "--client-key", client_pair.key)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[0])["detections"]


@pytest.mark.server
def test_the_page_and_verify_show_a_certificate_too(
    mutual: TritonServer, authority: Pair, client_pair: Pair, toy_onnx: Path, tmp_path: Path
) -> None:
    server = ["--server", mutual.grpc_url, "--ca", str(authority.certificate)]
    own = ["--client-cert", str(client_pair.certificate), "--client-key", str(client_pair.key)]
    (tmp_path / "a.jpg").write_bytes(PICTURE)
    verify = ["verify", str(toy_onnx), "--images", str(tmp_path)]
    refused = invoke(*verify, *server)
    assert refused.exit_code == 3 and "no Triton server answers at grpcs://" in refused.stderr, refused.output
    compared = invoke(*verify, *server, *own)
    assert compared.exit_code == 0 and f"PASS  {mutual.grpc_url} (Triton)" in compared.stdout, compared.output
    with run_web("--port", "0", *server, *own) as page:
        assert page.stdout is not None
        url = page.stdout.readline().split()[-1]
        assert ask(url, "/api/detect", PICTURE).json["detections"]
        page.send_signal(signal.SIGINT)
        _, err = page.communicate(timeout=20)
    assert "warning" not in err, "the page's own look at the server is encrypted as well"


@pytest.mark.server
@pytest.mark.parametrize("who", ["plain", "nobody", "stranger", "trusts another"])
def test_others_are_not_served(
    mutual: TritonServer, authority: Pair, client_pair: Pair, stranger: Pair, who: str
) -> None:
    url, tls = mutual.grpc_url, None
    match who:
        case "plain":
            url = url.replace("grpcs", "grpc")
        case "nobody":
            tls = TlsFiles(authority.certificate)
        case "stranger":
            tls = TlsFiles(authority.certificate, stranger.certificate, stranger.key)
        case "trusts another":
            tls = TlsFiles(stranger.certificate, client_pair.certificate, client_pair.key)
    with pytest.raises(UserError, match="no Triton server answers at grpc") as caught:
        Client(url, tls=tls)
    assert ("grpcs://" if who == "plain" else "--ca") in caught.value.hint
    if who == "trusts another":
        assert "no encrypted connection: " in caught.value.message and "certificate" in caught.value.message


@pytest.mark.server
def test_without_client_certificates_the_server_is_still_checked(
    repository: Path, authority: Pair, own: Pair, stranger: Pair
) -> None:
    options = ServerOptions.free_ports(host="0.0.0.0", tls=Tls(own.certificate, own.key))
    with TritonServer(repository, options) as server:
        server.wait_until_ready(60)
        with Client(server.grpc_url, tls=TlsFiles(authority.certificate)) as client:
            assert len(client.predict([PICTURE])[0]) > 0
        for url, tls in (
            (server.grpc_url, TlsFiles(stranger.certificate)),
            (server.grpc_url.replace("grpcs", "grpc"), None),
        ):
            with pytest.raises(UserError, match="no Triton server answers"):
                Client(url, tls=tls)
        assert server.http_url.startswith("127.0.0.1:"), "HTTP can't be encrypted, so it is not opened to others"
        assert not open_to_others(server.options.http_port) and not open_to_others(server.options.metrics_port)
        assert open_to_others(server.options.grpc_port)


def open_to_others(port: int) -> bool:
    """Say whether some socket listens at this port on all addresses (/proc/net/tcp: address 0, state 0A)."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:  # Triton opens its metrics after its HTTP
        tables = [Path("/proc/net", name).read_text() for name in ("tcp", "tcp6")]
        lines = [line.split() for table in tables for line in table.splitlines()]
        addresses = [line[1].split(":") for line in lines if line[3] == "0A"]
        here = [address for address, found in addresses if found != "local_address" and int(found, 16) == port]
        if here:
            return any(int(address, 16) == 0 for address in here)
        time.sleep(0.05)
    raise AssertionError("nothing listens there at all")


ADMIN_HTTP = {
    "shared-memory": ("GET", "/v2/systemsharedmemory/status"),
    "model-repository": ("POST", "/v2/repository/index"),
    "trace": ("GET", "/v2/trace/setting"),
    "logging": ("GET", "/v2/logging"),
}


def call_http(server: TritonServer, api: str, headers: dict[str, str]) -> int:
    method, path = ADMIN_HTTP[api]
    request = urllib.request.Request(f"http://{server.http_url}{path}", b"" if method == "POST" else None, headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def call_grpc(client: InferenceServerClient, api: str, headers: dict[str, str]) -> Any:
    calls = {
        "shared-memory": client.get_system_shared_memory_status,
        "model-repository": client.get_model_repository_index,
        "trace": client.get_trace_settings,
        "logging": client.get_log_settings,
    }
    return calls[api](headers=headers)


def test_every_administrative_group_has_a_call_here() -> None:
    assert set(ADMIN_HTTP) == set(ADMIN_APIS)


@pytest.mark.server
@pytest.mark.parametrize("api", ADMIN_APIS)
def test_administrative_calls_need_the_token_over_http(mutual: TritonServer, api: str) -> None:
    assert call_http(mutual, api, {}) == 403
    assert call_http(mutual, api, {ADMIN_HEADER: "not-the-token-of-this-server"}) == 403
    assert call_http(mutual, api, {ADMIN_HEADER: TOKEN}) == 200


@pytest.mark.server
def test_administrative_calls_need_the_token_over_grpc(
    mutual: TritonServer, authority: Pair, client_pair: Pair
) -> None:
    with InferenceServerClient(
        mutual.grpc_url.removeprefix("grpcs://"),
        ssl=True,
        root_certificates=str(authority.certificate),
        certificate_chain=str(client_pair.certificate),
        private_key=str(client_pair.key),
    ) as client:
        for api in ADMIN_APIS:
            for headers in ({}, {GRPC_ADMIN_HEADER: "not-the-token-of-this-server"}):
                with pytest.raises(InferenceServerException, match="restricted"):
                    call_grpc(client, api, headers)
            assert call_grpc(client, api, {GRPC_ADMIN_HEADER: TOKEN}) is not None


@pytest.mark.server
@pytest.mark.parametrize("api", ADMIN_APIS)
def test_without_a_token_nobody_administrates(server: TritonServer, api: str) -> None:
    assert call_http(server, api, {}) == 403
    assert call_http(server, api, {ADMIN_HEADER: ""}) == 403
    with (
        InferenceServerClient(server.grpc_url) as client,
        pytest.raises(InferenceServerException, match="restricted"),
    ):
        call_grpc(client, api, {})


@pytest.mark.server
def test_loading_a_model_is_refused_even_with_the_token(mutual: TritonServer) -> None:
    """Model control is off: the token opens what there is to ask, it gives nobody code to run."""
    url = f"http://{mutual.http_url}/v2/repository/models/detector/load"
    request = urllib.request.Request(url, b"{}", {ADMIN_HEADER: TOKEN})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    with caught.value as answer:
        assert "explicit model load / unload is not allowed" in answer.read().decode()


@pytest.mark.server
def test_a_body_over_the_limit_is_refused_by_the_server_itself(server: TritonServer) -> None:
    """Not by our client, which would not send it: an attacker has another one."""
    from tritonclient.grpc import InferInput

    body = np.zeros((1, 33_554_433), np.uint8)
    tensor = InferInput("image_bytes", body.shape, "UINT8")
    tensor.set_data_from_numpy(body)
    with (
        InferenceServerClient(server.grpc_url) as client,
        pytest.raises(InferenceServerException, match="33554433 bytes; at most 33554432 are accepted") as caught,
    ):
        client.infer("detector", [tensor])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    with Client(server.grpc_url) as client:
        assert not isinstance(next(iter(client.predict_many([PICTURE]))), ImageError), "it still serves"


@pytest.mark.server
def test_https_of_a_proxy(server: TritonServer, authority: Pair, own: Pair, stranger: Pair) -> None:
    with EncryptingProxy(own, server.http_url) as port:
        with Client(f"https://127.0.0.1:{port}", tls=TlsFiles(authority.certificate)) as client:
            assert len(client.predict([PICTURE])[0]) > 0
        with pytest.raises(UserError, match=rf"no Triton server answers at https://127.0.0.1:{port}") as caught:
            Client(f"https://127.0.0.1:{port}", tls=TlsFiles(stranger.certificate))
        assert "--ca" in caught.value.hint


WRONG_SERVE: dict[str, tuple[list[str], str]] = {
    "open to others": (["--host", "0.0.0.0"], "--expose"),
    "certificate without key": (["--tls-cert", "{server}.pem"], "--tls-key belong together"),
    "only a client authority": (["--tls-client-ca", "{server}.pem"], "belong together"),
    "key and certificate swapped": (["--tls-cert", "{server}.key", "--tls-key", "{server}.pem"], "no certificate"),
    "no such key": (["--tls-cert", "{server}.pem", "--tls-key", "{server}.no"], "No such file"),
    "empty token": (["--admin-token-file", "{empty}"], "no usable token"),
    "short token": (["--admin-token-file", "{short}"], "16 or more"),
}


@pytest.mark.parametrize("case", WRONG_SERVE)
def test_serve_refuses_half_a_protection(
    case: str, repository: Path, folder: Path, own: Pair, tmp_path: Path
) -> None:
    arguments, words = WRONG_SERVE[case]
    (tmp_path / "empty").touch()
    (tmp_path / "short").write_text("secret\n")
    names = {"server": folder / "server", "empty": tmp_path / "empty", "short": tmp_path / "short"}
    filled = [argument.format(**names) for argument in arguments]
    result = invoke("serve", repository, *filled)
    assert result.exit_code == 2 and words in result.stderr, result.output
    assert "Traceback" not in result.stderr


WRONG_CLIENT: dict[str, tuple[list[str], str]] = {
    "authority for a plain server": (["--server", "localhost:1", "--ca", "{server}.pem"], "grpcs://localhost:1"),
    "no such authority": (["--server", "grpcs://localhost:1", "--ca", "{server}.no"], "No such file"),
    "authority is a key": (["--server", "grpcs://localhost:1", "--ca", "{server}.key"], "PEM files are expected"),
    "half a pair": (["--server", "grpcs://localhost:1", "--client-cert", "{server}.pem"], "belong together"),
}


@pytest.mark.parametrize("case", WRONG_CLIENT)
def test_predict_refuses_half_a_protection(case: str, folder: Path, own: Pair, tmp_path: Path) -> None:
    arguments, words = WRONG_CLIENT[case]
    (tmp_path / "a.jpg").write_bytes(PICTURE)
    filled = [argument.format(server=folder / "server") for argument in arguments]
    result = invoke("predict", tmp_path / "a.jpg", *filled)
    assert result.exit_code == 2 and words in result.stderr, result.output
    assert "Traceback" not in result.stderr


def test_verify_refuses_certificates_for_nobody(own: Pair, tmp_path: Path) -> None:
    words = ["verify", "a.onnx", "b.onnx", "--images", str(tmp_path), "--ca", str(own.certificate)]
    result = invoke(*words)
    assert result.exit_code == 2 and "are for a --server" in result.stderr, result.output


def test_changing_versions_without_a_token_opens_only_that() -> None:
    def closed(token: str | None, *, reload: bool) -> set[str]:
        (http, grpc) = admin_flags(token, reload=reload)
        groups = {flag.split("=", 1)[1].split(":")[0] for flag in (http, grpc)}
        assert len(groups) == 1
        return set(groups.pop().split(","))

    assert (
        closed(None, reload=False) == closed(TOKEN, reload=False) == closed(TOKEN, reload=True) == set(ADMIN_APIS)
    )
    assert closed(None, reload=True) == set(ADMIN_APIS) - {"model-repository"}
    assert admin_flags(None) != admin_flags(None), "the token that nobody knows is another one each time"


def test_loopback_is_the_default_and_needs_no_flag(tmp_path: Path) -> None:
    assert ServerOptions().host in LOOPBACK
    for host in LOOPBACK:
        check_exposure(host, expose=False)
    check_exposure("0.0.0.0", expose=True)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token(tmp_path / "token") == TOKEN
