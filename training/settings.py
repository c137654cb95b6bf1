"""Settings: dataclass fields that carry their limits, their help and the flag they are set by.

    @dataclass(frozen=True)
    class TrainConfig:
        warmup: int = setting(1000, "Iterations of rising learning rate.", low=0)

The command line (scripts/cli/options.py), recipes and the record of a run are all made from these fields, so a new
setting is one line. A field without help can't be set from outside.
"""

import types
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, Literal, Union, get_args, get_origin

from retinaserve.training.errors import Exit, UserError


@dataclass(frozen=True)
class Setting:
    """What is known of a setting beside its type and default."""

    help: str = ""
    name: str = ""  # of the flag, with underscores, where that is not the field's
    aliases: tuple[str, ...] = ()
    low: float | None = None  # smallest allowed value, or, with `open_low`, the value it must exceed
    high: float | None = None
    open_low: bool = False
    open_high: bool = False
    choices: tuple[str, ...] = ()
    metavar: str | None = None

    @property
    def flags(self) -> list[str]:
        """The flags it is set by."""
        return [f"--{name.replace('_', '-')}" for name in (self.name, *self.aliases)]

    @property
    def expected(self) -> str:
        """What values are allowed, for a message."""
        if self.choices:
            return f"one of: {', '.join(self.choices)}"
        if self.high is None:
            return "a positive number is expected" if self.open_low else f"{self.low:g} or more is expected"
        return f"{self.low:g} to {'below ' if self.open_high else ''}{self.high:g} is expected"

    def allows(self, value: Any) -> bool:
        """Whether a value, or each part of one, is within the limits; None is."""
        if isinstance(value, tuple):
            return all(self.allows(part) for part in value)
        if value is None or (not self.choices and self.low is None):
            return True
        if self.choices:
            return value in self.choices
        low, high = self.low or 0, float("inf") if self.high is None else self.high
        above = value > low if self.open_low else value >= low
        return bool(above and (value < high if self.open_high else value <= high))


def setting(default: Any, help: str = "", **known: Any) -> Any:
    """Return a dataclass field; what is known of it are further fields of a Setting."""
    return field(default=default, metadata={"setting": Setting(help, **known)})


def settings_of(record: Any) -> Iterator[tuple[Field[Any], Setting]]:
    """Yield the settings of a dataclass or of its instance, with what is known of them."""
    for each in fields(record):
        known = each.metadata.get("setting")
        if known is not None:
            choices = known.choices or (get_args(each.type) if get_origin(each.type) is Literal else ())
            yield each, replace(known, name=known.name or each.name, choices=choices)


def check_settings(record: Any, what: str = "", *, code: Exit = Exit.USAGE) -> None:
    """Raise UserError for the first field of a dataclass's instance that is outside its limits."""
    for each, known in settings_of(record):
        value = getattr(record, each.name)
        if not known.allows(value):
            shown = repr(value) if isinstance(value, str) else value
            raise UserError(f"{what}{each.name} is {shown}", known.expected, code=code)


def from_flags(record: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that values, by the names of flags, set in a dataclass; others are left out."""
    return {each.name: values[known.name] for each, known in settings_of(record) if known.name in values}


def plain_type(kind: Any) -> Any:
    """Return a field's type without None."""
    if get_origin(kind) in (Union, types.UnionType):
        return next(part for part in get_args(kind) if part is not type(None))
    return kind
