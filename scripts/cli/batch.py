"""`batch`: the boxes of a folder or bucket of images as Parquet, on the workers of Ray."""

import shlex
from pathlib import Path

import click

from retinaserve.scripts.cli.options import COUNT, FILE, SERVER_HELP
from retinaserve.scripts.cli.output import finish, progress
from retinaserve.training.errors import Exit, UserError


@click.command()
@click.argument("source")
@click.argument("output")
@click.option("--model", type=FILE, help="Checkpoint, graph or plan that each worker runs.")
@click.option("--server", default="", metavar="HOST:PORT", help=f"Instead of --model. {SERVER_HELP}.")
@click.option("--workers", type=COUNT, help="Processes, a core each.  [default: all cores]")
@click.option("--part", type=COUNT, default=500, help="Images of an output file: what a kill can cost a worker.")
@click.option("--ray", "address", default="", help="Of a Ray cluster; auto: the one here.  [default: start one]")
def batch(
    source: str, output: str, model: Path | None, server: str, workers: int | None, part: int, address: str
) -> None:
    """Answer all images of SOURCE into Parquet files in OUTPUT, a row an image.

    Both are folders or fsspec addresses, such as s3://bucket/images. The same command goes on where a run was
    killed. A bad image is a row with its error; the exit code is then 3.
    """
    import pyarrow  # noqa: F401  # told of before the work
    import ray  # noqa: F401

    from retinaserve.eval.batch import Plan, run
    from retinaserve.training.machine import machine

    if bool(model) == bool(server):
        raise click.UsageError("either --model or --server is needed")
    if model and not model.is_file():
        raise UserError(f"{model}: no such file", code=Exit.BAD_DATA)
    plan = Plan.make(source, output, part=part)
    waiting = plan.waiting()
    total = sum(len(plan.uris_of(number)) for number in waiting)
    if total < len(plan.uris):
        click.echo(f"{len(plan.uris) - total} of {len(plan.uris)} images are there already", err=True)
    failed = 0
    parts = run(
        plan,
        model=model.resolve() if model else None,
        server=server,
        workers=workers or machine()["cores"],
        address=address,
    )
    for done in progress(parts, len(waiting), "parts"):
        failed += done.failed
    click.echo(f"{output}: {len(plan.uris)} rows in {plan.parts()} files")
    finish(failed, total, f"python -c {shlex.quote(f'import pandas; print(pandas.read_parquet({output!r}))')}")
