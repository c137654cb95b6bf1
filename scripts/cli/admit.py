"""`admit`: which pictures the server would refuse before decoding, and what asking costs."""

from pathlib import Path

import click

from retinaserve.scripts.cli.options import PATH
from retinaserve.scripts.cli.output import name_next
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import write_json

AROUND = range(80_000, 125_001)  # bytes of what counts as a JPEG of 100 kB


@click.command()
@click.argument("images", nargs=-1)
@click.option("--trial/--no-trial", default=True, help="Decode WebP and TIFF once, as the GPU profile does.")
@click.option("--cost", is_flag=True, help="Time it on JPEGs of about 100 kB: those given, or drawn ones.")
@click.option("--served", is_flag=True, help="Time it in the embedded Triton as well; implies --cost.")
@click.option("--json", "json_path", type=PATH, help="Also write the results to this file.")
def admit(images: tuple[str, ...], trial: bool, cost: bool, served: bool, json_path: Path | None) -> None:
    """Say which of IMAGES (files, folders, patterns) the server refuses without decoding them, and why.

    Exits with 1 if any is refused.
    """
    from retinaserve.training.images import find_images

    if not images and not (cost or served):
        raise UserError("no images are given", "files, folders, patterns; or --cost", code=Exit.USAGE)
    paths = find_images(images) if images else []
    refused = _judge(paths, trial)
    for path, reason in refused.items():
        click.echo(f"{path}: {reason}")
    report: dict[str, object] = {"pictures": len(paths), "refused": refused}
    if paths:
        click.echo(f"{len(refused)} of {len(paths)} pictures refused")
    if cost or served:
        report |= _time(paths, served)
    if json_path:
        write_json(json_path, report)
    if refused:
        raise click.exceptions.Exit(Exit.CHECK_FAILED)
    name_next("retinaserve build MODEL.plan --profile gpu --output repository")


def _judge(paths: list[Path], with_trial: bool) -> dict[str, str]:
    from retinaserve.build_tools.preprocess import admit as judge
    from retinaserve.build_tools.preprocess.admission.trial import UNCHECKED, trial

    refused = {}
    for path in paths:
        data = path.read_bytes()
        bad = judge(data) or trial(data, kinds=UNCHECKED if with_trial else ())
        if bad:
            refused[str(path)] = bad.message
    return refused


def _time(paths: list[Path], served: bool) -> dict[str, object]:
    """Time it, print it, and return it for the report."""
    from retinaserve.scripts.admission import definition_cost, draw_jpegs, step_cost

    jpegs = [data for path in paths if (data := path.read_bytes())[:2] == b"\xff\xd8" and len(data) in AROUND]
    if paths and not jpegs:
        raise UserError("none of the pictures is a JPEG of about 100 kB", "leave them out, and some are drawn")
    jpegs = jpegs or draw_jpegs()
    kilobytes = sum(map(len, jpegs)) / len(jpegs) / 1000
    alone = definition_cost(jpegs)
    what = f"{len(jpegs)} JPEGs of {kilobytes:.0f} kB"
    click.echo(f"definition: {alone:.0f} us a picture, {1e6 / alone:,.0f} pictures/s on a core ({what})")
    found: dict[str, object] = {"jpegs": len(jpegs), "kilobytes": kilobytes, "definition_us": alone}
    if served:
        step = step_cost(jpegs)
        rate = f"{step.microseconds:.0f} us a picture, {1e6 / step.microseconds:,.0f} pictures/s on a core"
        click.echo(f"step in Triton: {rate}, in batches of {step.mean_batch:.1f}")
        click.echo(f"the server around it: {step.server_microseconds:.0f} us a picture")
        found |= {
            "step_us": step.microseconds,
            "server_us": step.server_microseconds,
            "mean_batch": step.mean_batch,
        }
    return found
