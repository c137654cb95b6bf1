"""`models` where it must refuse; what it does to a server under load is the reload drill's test."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from eval.transport import Endpoint
from scripts.cli import main
from scripts.models import Deployment
from scripts.triton import TritonServer
from training.errors import UserError

pytestmark = pytest.mark.server


def files(repository: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}


def test_a_server_that_was_not_started_for_it(server: TritonServer, repository: Path) -> None:
    before = files(repository)
    with pytest.raises(UserError, match="does not change its models") as caught:
        Deployment(repository, Endpoint.parse(server.grpc_url)).use(1)
    assert "serve --reload" in caught.value.hint
    assert files(repository) == before, "what the server refuses is taken back"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_status(server: TritonServer, repository: Path, protocol: str, tmp_path: Path) -> None:
    url = server.grpc_url if protocol == "grpc" else f"http://{server.http_url}"
    path = tmp_path / "state.json"
    result = CliRunner().invoke(main, ["models", "status", str(repository), "--server", url, "--json", str(path)])
    assert result.exit_code == 0, result.output
    assert "version 1: answers as detector, in memory" in result.output
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
    server: TritonServer, repository: Path, words: list[str], expected: str
) -> None:
    verb, *version = words
    result = CliRunner().invoke(main, ["models", verb, str(repository), *version, "--server", server.grpc_url])
    assert result.exit_code == 2 and expected in result.output, result.output


def test_no_server(repository: Path) -> None:
    result = CliRunner().invoke(main, ["models", "status", str(repository), "--server", "127.0.0.1:1"])
    assert result.exit_code == 3 and "no Triton server answers at grpc://127.0.0.1:1" in result.output
