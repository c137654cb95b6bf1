"""The one error a user is meant to see, and the exit codes of every command.

    raise UserError("val.json: image id 'a7' is a string", "COCO ids are integers; see docs/data.md")

Library code raises it and never prints or exits; `scripts/cli/main.py` turns it into one or two lines on stderr.
Anything else that escapes a command is a bug and keeps its traceback.
"""

from enum import IntEnum

__all__ = ["Exit", "UserError"]


class Exit(IntEnum):
    """Exit codes shared by all commands."""

    OK = 0
    CHECK_FAILED = 1
    USAGE = 2
    BAD_DATA = 3


class UserError(Exception):
    """A mistake the user can correct: `message` names the file and the value, `hint` says what was expected."""

    def __init__(self, message: str, hint: str = "", *, code: Exit = Exit.BAD_DATA) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message
