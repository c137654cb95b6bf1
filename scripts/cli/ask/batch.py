"""`batch`: the boxes of a folder or bucket of images as Parquet, on the workers of Ray."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import click

from retinaserve.scripts.cli.options import COUNT, FILE, SERVER_HELP
from retinaserve.scripts.cli.output import finish, note, progress
from retinaserve.training.errors import Exit, UserError


@click.command()
@click.argument("source")
@click.argument("output")
@click.option("--model", type=FILE, help="Checkpoint, graph or plan that each worker runs.")
@click.option("--server", default="", metavar="HOST:PORT", help=f"Instead of --model. {SERVER_HELP}.")
@click.option("--workers", type=COUNT, help="Processes, a core or GPU each.  [default: all]")
@click.option("--part", type=COUNT, default=500, help="Images of an output file: what a kill can cost a worker.")
@click.option("--ray", "address", default="", help="Of a Ray cluster; auto: the one here.  [default: start one]")
def batch(
    source: str, output: str, model: Path | None, server: str, workers: int | None, part: int, address: str
) -> None:
    """Answer all images of SOURCE into Parquet files in OUTPUT, a row an image.

    Both are folders or fsspec addresses, such as s3://bucket/images. SOURCE holds images, tars of images
    (webdataset), or Parquet files with a column of encoded images; s3://bucket/day-*.tar names some. The same
    command goes on where a run was killed. A bad image is a row with its error; the exit code is then 3.
    """
    import pyarrow  # noqa: F401  # told of before the work
    import ray  # noqa: F401

    from retinaserve.eval.batch import Plan, run
    from retinaserve.eval.client.client import Client
    from retinaserve.training.files import sha256

    if bool(model) == bool(server):
        raise click.UsageError("either --model or --server is needed")
    if model and not model.is_file():
        raise UserError(f"{model}: no such file", code=Exit.BAD_DATA)
    if model:
        identity = sha256(model)
    else:
        with Client(server) as client:
            identity = client.identity().graph_sha256
    plan = Plan.make(source, output, part=part, model=identity)
    total = sum(len(plan.images_of(number)) for number in plan.waiting())
    if total < len(plan.images):
        note(f"{len(plan.images) - total} of {len(plan.images)} images are there already")
    failed = 0

    def images() -> Iterator[int]:
        nonlocal failed
        for done in run(plan, model=model, server=server, workers=workers or 0, address=address):
            failed += done.failed
            yield from range(done.images)

    with redirect_stdout(sys.stderr):  # Ray tells of a worker that died, and whatever it is told not to, on stdout
        for _ in progress(images(), total):
            pass
    click.echo(f"{output}: {len(plan.images)} rows in {plan.parts()} files")
    finish(failed, total, f"python -c {shlex.quote(f'import pandas; print(pandas.read_parquet({output!r}))')}")
