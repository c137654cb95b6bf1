"""`models` where it must refuse; what it does to a server under load is the reload drill's test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from retinaserve.eval.client.transport import Endpoint
from retinaserve.scripts.server.rollout import Deployment
from retinaserve.scripts.server.triton import ServerOptions, TritonServer
from retinaserve.training.errors import UserError
from tests.cli import invoke

pytestmark = pytest.mark.server


TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def administered(repository: Path) -> Iterator[TritonServer]:
    """A server that lets the token's owner administrate, and was not started to change its models."""
    options = ServerOptions.free_ports(admin_token=TOKEN)
    with TritonServer(repository, options) as running:
        running.wait_until_ready(60)
        yield running


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(TOKEN)
    return str(path)


def files(repository: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}


def test_a_server_that_was_not_started_for_it(administered: TritonServer, repository: Path) -> None:
    before = files(repository)
    with pytest.raises(UserError, match="does not change its models") as caught:
        Deployment(repository, Endpoint.parse(administered.grpc_url), TOKEN).use(1)
    assert "serve --reload" in caught.value.hint
    assert files(repository) == before, "what the server refuses is taken back"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_without_the_token_it_is_for_administrators(server: TritonServer, repository: Path, protocol: str) -> None:
    url = server.grpc_url if protocol == "grpc" else f"http://{server.http_url}"
    with pytest.raises(UserError, match="keeps this for administrators") as caught:
        Deployment(repository, Endpoint.parse(url)).status()
    assert "--admin-token-file" in caught.value.hint


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_status(administered: TritonServer, repository: Path, protocol: str, tmp_path: Path, token: str) -> None:
    url = administered.grpc_url if protocol == "grpc" else f"http://{administered.http_url}"
    path = tmp_path / "state.json"
    words = ["models", "status", str(repository), "--server", url, "--json", str(path)]
    result = invoke(*words, "--admin-token-file", token)
    assert result.exit_code == 0, result.output
    assert "version 1: answers as detector, in memory" in result.output
    following = f"next: retinaserve models use {repository} VERSION --server {url} --admin-token-file {token}"
    assert following in result.stderr, "with the token: without it the server refuses"
    assert '"retinanet": [' in path.read_text()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["use", "7"], "has no version 7"),
        (["canary", "7"], "has no version 7"),
        (["unload", "1"], "version 1 is served"),
        (["unload", "7"], "version 7 is not in memory"),
        (["rollback"], "no version was served before"),
    ],
)
def test_what_makes_no_sense_is_refused(
    administered: TritonServer, repository: Path, words: list[str], expected: str, token: str
) -> None:
    verb, *version = words
    server = ("--server", administered.grpc_url, "--admin-token-file", token)
    result = invoke("models", verb, repository, *version, *server)
    assert result.exit_code == 2 and expected in result.output, result.output


def test_no_server(repository: Path) -> None:
    result = invoke("models", "status", repository, "--server", "127.0.0.1:1")
    assert result.exit_code == 3 and "no Triton server answers at grpc://127.0.0.1:1" in result.output
