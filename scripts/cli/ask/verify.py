"""`verify`: is what is deployed still what was trained?"""

import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retinaserve.eval.verify.matching import PRECISIONS
from retinaserve.scripts.cli.options import (
    COUNT,
    FILE,
    FOLDER,
    LABELS_HELP,
    PATH,
    batch_option,
    images_option,
    json_option,
    server_words,
    threads_option,
    timeout_option,
    tls_options,
)
from retinaserve.scripts.cli.output import caution, failure, name_next, note, progress, warn
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import write_json

if TYPE_CHECKING:
    from retinaserve.eval.client.transport import TlsFiles
    from retinaserve.eval.verify.compare import Verification


@click.command()
@click.argument("reference", type=FILE)
@click.argument("others", type=FILE, nargs=-1)
@click.option("--server", "servers", metavar="HOST:PORT", multiple=True, help="A Triton server to compare, too.")
@click.option(
    "--answers",
    type=FILE,
    help="COCO results that an imported model's own code wrote of the images of --annotations: all are compared "
    "with them, REFERENCE too.",
)
@images_option
@click.option("--annotations", type=PATH, help=f"{LABELS_HELP[:-1]}; with them it compares AP too.")
@click.option("--count", type=click.IntRange(min=0), default=0, help="Images, evenly spread; 0 takes all.")
@click.option(
    "--runtime",
    type=click.Choice(["both", "openvino", "onnxruntime"]),
    default="both",
    help="What runs .onnx files; both means those that are installed.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="Apply the limits of this precision, rather than of that of the files and the server.",
)
@click.option("--limit", "limits", metavar="NAME=VALUE", multiple=True, help="Another limit, by its name.")
@click.option(
    "--size", type=click.IntRange(min=32), nargs=2, metavar="H W", help="Input size of a reference that is a .pth."
)
@click.option("--plugins", type=FILE, help="Plugin library of .plan files; build/plugins/ if it is there.")
@batch_option
@threads_option
@timeout_option
@tls_options
@json_option
@click.option("--output", type=FOLDER, help="Write the worst images, side by side, into this directory.")
@click.option("--worst", type=COUNT, default=6, help="With --output: how many.")
def verify(
    reference: Path,
    others: tuple[Path, ...],
    servers: tuple[str, ...],
    answers: Path | None,
    images: Path,
    annotations: Path | None,
    count: int,
    runtime: str,
    precision: str | None,
    limits: tuple[str, ...],
    size: tuple[int, int] | None,
    timeout: float,
    tls: "TlsFiles | None",
    json_file: Path | None,
    output: Path | None,
    worst: int,
    **settings: Any,
) -> None:
    """Compare OTHERS and servers with REFERENCE on the same images, tensor by tensor and box by box.

    Models are checkpoints (.pth), exported graphs (.onnx) and TensorRT plans (.plan). The exit code is 1 when a
    number is beyond its limit, 3 when they are not the same detector or images can't be read. An import is held to
    its source by the answers of that: retinaserve verify model.pth --answers results.json ...
    """
    from retinaserve.eval.client.client import Client
    from retinaserve.eval.client.server_info import SCALED
    from retinaserve.eval.runtimes.detector import open_detector
    from retinaserve.eval.verify.compare import Candidate, SourceAnswers, check_same, compare
    from retinaserve.eval.verify.matching import parse_overrides
    from retinaserve.training.check.checks import scored_labels
    from retinaserve.training.coco import read_results
    from retinaserve.training.images.sources import annotated_files, find_images, spread
    from retinaserve.training.pixels import Decoding

    if not others and not servers and not answers:
        raise click.UsageError("nothing to compare with: name another model, a --server or --answers")
    if answers and not annotations:
        raise click.UsageError("--answers are of image ids: --annotations says which files have them")
    if tls and not servers:
        raise click.UsageError("--ca, --client-cert and --client-key are for a --server, and none is named")
    overrides = parse_overrides(limits)
    truth = scored_labels(annotations, images, warn=warn) if annotations else None
    files = annotated_files(truth, images) if truth else dict(enumerate(find_images([images]), 1))
    settings["heads"] = True
    with ExitStack() as stack:
        # Servers first: one that is not there is reported before a network is compiled.
        clients = [stack.enter_context(Client(each, timeout=timeout, tls=tls)) for each in servers]
        # Prepared as the servers do it; one that says nothing is of a build, or a profile, that decodes in full.
        settings["decoding"] = Decoding(full=any(client.identity().decode != SCALED for client in clients))
        right = open_detector(reference, size=size, **settings)
        source = SourceAnswers(answers, read_results(answers, right.category_ids)) if answers else None
        if source:
            files = {image: path for image, path in files.items() if image in source.answers}
            if not files:
                raise UserError(f"{answers}: none of the images in {annotations} are in it", "image_id ties them")
            note(f"{answers}: {len(files)} of the images, {len(source.answers) - len(files)} more in the file")
        chosen = {image: files[image] for image in spread(list(files), count or len(files))}
        candidates = [Candidate.of(right)] if source else []
        candidates += [
            Candidate.of(open_detector(path, onnx_runtime=name, **settings))
            for path in others
            for name in _runtimes(path, runtime)
        ]
        candidates += [Candidate.of(client) for client in clients]
        check_same(right, candidates)
        result = compare(
            right,
            candidates,
            chosen,
            source_answers=source,
            truth=truth,
            precision=precision or "",
            overrides=overrides,
            progress=progress,
        )
    _print(result, json_file, output, worst)
    if not result.passed:
        words = shlex.join([str(reference), *map(str, others)]) + f" {server_words(*servers, tls=tls)}".rstrip()
        again = f"retinaserve verify {words} --images {shlex.quote(str(images))} --output DIR"
        name_next("docs/evaluation.md says what each number points at" if output else again)
        sys.exit(Exit.CHECK_FAILED)
    if servers:
        name_next(f"retinaserve bench {server_words(servers[0], tls=tls)} --images {shlex.quote(str(images))}")
    else:
        name_next(f"retinaserve build {shlex.quote(str((others or [reference])[0]))} --profile cpu --output REPO")
    if result.errors:
        sys.exit(Exit.BAD_DATA)


def _runtimes(path: Path, choice: str) -> list[str | None]:
    """Return what runs a file: for an ONNX file the choices that are installed, else what its suffix says."""
    from retinaserve.eval.runtimes.onnx import BACKENDS, installed_backends

    if path.suffix != ".onnx":
        return [None]
    wanted = [name for name in BACKENDS if choice in (name, "both")]
    return [name for name in wanted if name in installed_backends()] or [*wanted]


def _print(result: "Verification", json_file: Path | None, output: Path | None, worst: int) -> None:
    from retinaserve.eval.verify.report import table, to_dict, write_sheets

    if result.warning:
        caution(f"warning: {result.warning}")
    for image, error in result.errors.items():
        failure(f"{result.files[image]}: {error.message}")
    click.echo(table(result))
    if json_file:
        write_json(json_file, to_dict(result))
    if output:
        for path in write_sheets(result, output, count=worst):
            note(f"worst images: {path}")
