"""A verb as a user types it.

result = invoke("predict", folder, "--score", 0.1)
refused(result, 3, "no such file")
"""

from click.testing import CliRunner, Result

from retinaserve.scripts.cli.main import main


def invoke(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def refused(result: Result, code: int, words: str) -> None:
    """Check that a mistake is answered with its exit code, in one or two lines, and with nothing on stdout."""
    assert result.exit_code == code and words in result.stderr and result.stdout == "", result.output
    said = [line for line in result.stderr.splitlines() if line and not line.startswith(("Usage:", "Try "))]
    assert 1 <= len(said) <= 2 and "Traceback" not in result.stderr
