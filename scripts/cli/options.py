"""The options that several verbs share, and the words that reach the same server again.

@server_option
@tls_options
def verb(server: str, tls: TlsFiles | None) -> None: ...
"""

import difflib
import functools
import shlex
from collections.abc import Callable
from dataclasses import Field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin

import click

from retinaserve.plugins.tiles import OVERLAP
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.settings import Setting, plain_type, settings_of
from retinaserve.training.spec import DETECTOR

if TYPE_CHECKING:
    from retinaserve.eval.client.transport import TlsFiles

Verb = TypeVar("Verb", bound=Callable[..., None])
Protocol = Literal["grpc", "http"]

PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
LABELS_HELP = "Labels of the images: COCO JSON, or another format of docs/data.md."
COUNT = click.IntRange(min=1)
POSITIVE = click.FloatRange(min=0, min_open=True)
SERVER_HELP = "The Triton server: HOST:PORT, or grpc://, http://, grpcs:// or https:// before it"

server_option = click.option(
    "--server",
    metavar="HOST:PORT",
    default="localhost:8001",
    help=f"{SERVER_HELP}; equal ones with commas, and one of them may die.",
)
protocol_option = click.option(
    "--protocol",
    type=click.Choice(["grpc", "http"]),
    help="What HOST:PORT speaks where --server does not say it: gRPC, or HTTP.",
)
model_option = click.option(
    "--model", "ensemble", default=DETECTOR, help="The ensemble to ask: detector, or detector_canary beside it."
)
timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(min=0.001),
    default=60.0,
    help="Seconds an image may take at the server, queueing included.",
)
wait_option = click.option(
    "--wait", type=click.FloatRange(min=0), default=0.0, help="Seconds to wait for the server to become ready."
)
images_option = click.option("--images", type=FOLDER, required=True, help="Directory of the images.")
batch_option = click.option("--batch", type=COUNT, default=8, help="Images in a batch.")
threads_option = click.option(
    "--threads", type=click.IntRange(min=0), default=0, help="Threads; 0 takes all cores."
)
json_option = click.option("--json", "json_file", type=FILE, help="Write the numbers to this JSON file.")
also_json_option = click.option("--json", "json_path", type=PATH, help="Also write the result to this JSON file.")
seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, help="The same seed gives the same result."
)
score_option = click.option("--score", type=click.FloatRange(0, 1), default=0.3, help="Leave weaker ones out.")


def together(*options: Callable[[Verb], Verb]) -> Callable[[Verb], Verb]:
    """Return what adds all of the options to a verb, in this order."""

    def add(verb: Verb) -> Verb:
        for option in reversed(options):
            verb = option(verb)
        return verb

    return add


labels_options = together(
    click.option("--images", type=PATH, default=Path(), help="Folder that the labels' file names start from."),
    click.option("--annotations", type=PATH, required=True, help=LABELS_HELP),
)
val_options = together(
    click.option("--val-images", type=PATH, help="Folder of the validation images.  [default: that of --images]"),
    click.option("--val-annotations", type=PATH, help="Labels to validate on."),
)
cut_options = together(  # besides --tile
    click.option("--overlap", default=OVERLAP, help="Share of a tile's side that neighbours have in common."),
    click.option("--visible", type=click.FloatRange(0, 1), default=0.5, help="Share of a box that a tile shows."),
    click.option("--empty", type=click.FloatRange(min=0), default=0.1, help="Empty tiles for each with boxes."),
)


def decoding_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Add the options of what is decoded, and how; the verb takes them as `decoding`, a Decoding."""

    @click.option("--max-image-bytes", type=COUNT, default=32 * 1024 * 1024, help="Largest encoded image.")
    @click.option("--max-image-pixels", type=COUNT, default=64_000_000, help="Largest image.")
    @click.option("--full-decode", is_flag=True, help="Decode all of a JPEG, not only what can be seen.")
    @functools.wraps(verb)
    def with_decoding(*, max_image_bytes: int, max_image_pixels: int, full_decode: bool, **rest: Any) -> None:
        from retinaserve.training.pixels import Decoding

        verb(decoding=Decoding(max_image_bytes, max_image_pixels, full_decode), **rest)

    return with_decoding


def tls_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Add the options of an encrypted connection; the verb takes them as `tls`, a TlsFiles or None."""

    @click.option("--ca", type=FILE, help="PEM authority of the server.  [default: the system's]")
    @click.option("--client-cert", type=FILE, help="PEM certificate to show to a server that asks for one.")
    @click.option("--client-key", type=FILE, help="PEM private key of --client-cert.")
    @functools.wraps(verb)
    def with_tls(*, ca: Path | None, client_cert: Path | None, client_key: Path | None, **rest: Any) -> None:
        from retinaserve.eval.client.transport import TlsFiles

        verb(tls=TlsFiles(ca, client_cert, client_key) if ca or client_cert or client_key else None, **rest)

    return with_tls


client_options = together(server_option, protocol_option, model_option, timeout_option, wait_option, tls_options)


class TileSize(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """A tile: "auto", or H,W in pixels, or one number for both."""

    name = "tile"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return (h, w), or "auto"."""
        if value == "auto":
            return value
        sides = value.split(",") if isinstance(value, str) else list(value)  # a list of a YAML file
        if not 1 <= len(sides) <= 2 or not all(str(side).strip().isdecimal() for side in sides):
            self.fail(f"{value!r} is neither auto nor H,W in pixels", param, ctx)
        return int(sides[0]), int(sides[-1])


def tile_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Add the options of images larger than the detector's input; the verb takes them as `tiling`, or None."""

    @click.option("--tile", type=TileSize(), metavar="auto|H,W", help="Cut into tiles; auto: of the model's size.")
    @click.option("--overlap", default=OVERLAP, metavar="SHARE", help="Of a tile's side that neighbours share.")
    @click.option("--whole", is_flag=True, help="With --tile: also ask for the whole image, for large objects.")
    @functools.wraps(verb)
    def with_tiles(*, tile: Any, overlap: float, whole: bool, **rest: Any) -> None:
        from retinaserve.eval.tiled import Tiling

        if tile is None and whole:
            raise click.UsageError("--whole needs --tile")
        tiling = None if tile is None else Tiling(None if tile == "auto" else tile, overlap, whole)
        verb(tiling=tiling, **rest)

    return with_tiles


def server_words(*servers: object, tls: "TlsFiles | None" = None) -> str:
    """Return the options that reach the same servers again, quoted for a shell."""
    words = [word for server in servers for word in ("--server", str(server))]
    if tls:
        files = (("--ca", tls.ca), ("--client-cert", tls.certificate), ("--client-key", tls.key))
        words += [word for option, file in files if file for word in (option, str(file))]
    return shlex.join(words)


def setting_options(
    record: type, *, names: tuple[str, ...] | None = None, **defaults: Any
) -> Callable[[Verb], Verb]:
    """Add an option for each setting of a dataclass, or for those of `names`; `defaults` are the verb's own."""
    return together(
        *(
            _setting_option(each, known, defaults.get(known.name, each.default))
            for each, known in settings_of(record)
            if known.help and (names is None or known.name in names)
        )
    )


def _setting_option(each: Field[Any], known: Setting, default: Any) -> Callable[[Verb], Verb]:
    kind = plain_type(each.type)
    if kind is bool:
        return click.option(*known.flags, is_flag=True, default=default, help=known.help)
    parts = get_args(kind) if get_origin(kind) is tuple else (kind,)
    allowed: Any = click.Choice(known.choices)
    if not known.choices:
        number: Any = click.FloatRange if float in parts else click.IntRange
        allowed = number(known.low, known.high, min_open=known.open_low, max_open=known.open_high)
    many: dict[str, Any] = {"multiple": True} if Ellipsis in parts else {"nargs": len(parts)}
    default = None if default == () else default
    return click.option(
        *known.flags, type=allowed, default=default, metavar=known.metavar, help=known.help, **many
    )


def use_config(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    """Let a file's values stand for the defaults of a command: the callback of an eager --config."""
    if value is not None and not context.resilient_parsing:
        context.default_map = {**(context.default_map or {}), **load_config(value, context)}


config_option = click.option(
    "--config",
    type=PATH,
    is_eager=True,
    expose_value=False,
    callback=use_config,
    help="YAML file whose keys are flags, or the name of a recipe; flags override it.",
)


def load_config(path: Path, context: click.Context) -> dict[str, Any]:
    """Return a file's values by the names of the command's parameters.

    Raises UserError for a key that is no flag, a value that its flag would refuse, and for what is not YAML.
    """
    from retinaserve.training.trainer.record import find_settings, read_settings

    path = find_settings(path)
    known = {
        flag.lstrip("-").replace("-", "_"): parameter
        for parameter in context.command.params
        if isinstance(parameter, click.Option) and parameter.name not in ("config", "override", "help")
        for flag in parameter.opts
    }
    values: dict[str, Any] = {}
    for key, value in read_settings(path).items():
        option = known.get(str(key).replace("-", "_"))
        if option is None:
            near = difflib.get_close_matches(str(key).replace("-", "_"), known, 1, 0.5)
            raise UserError(
                f"{path}: {key!r} is not a flag of {context.info_name or context.command.name}",
                f"did you mean {near[0].replace('_', '-')!r}?" if near else "see --help for those there are",
                code=Exit.USAGE,
            )
        if value is None:
            continue
        try:
            option.type_cast_value(context, value)
        except click.BadParameter as error:
            raise UserError(
                f"{path}: {key}: {error.message.rstrip('.')}", f"it is {value!r}", code=Exit.USAGE
            ) from None
        assert option.name is not None
        values[option.name] = value
    return values
