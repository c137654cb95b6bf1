"""`model-table`: docs/model_zoo.md, by one command."""

from pathlib import Path

import click

from retinaserve.scripts.cli.options import PATH
from retinaserve.scripts.cli.output import name_next
from retinaserve.training.files import write_json, write_text
from retinaserve.training.spec import BACKBONES


@click.command("model-table")
@click.option("--output", type=PATH, help="Write the page to this file; without it, print it.")
@click.option("--json", "json_path", type=PATH, help="Also write every round's numbers to this file.")
@click.option(
    "--work", type=PATH, default=Path("runs/model_table"), help="Where results are kept for a run that goes on."
)
@click.option(
    "--backbone",
    "chosen",
    type=click.Choice(tuple(BACKBONES)),
    multiple=True,
    default=tuple(BACKBONES),
    show_default=False,
    help="A backbone to measure; can be repeated; all if not given.",
)
@click.option("--no-backbones", is_flag=True, help="Measure none: only score what --trained names.")
@click.option("--size", type=click.IntRange(64), default=640, help="Input height and width.")
@click.option("--rounds", type=click.IntRange(1), default=3, help="Turns of the precisions of a backbone.")
@click.option("--seconds", type=click.FloatRange(1), default=10.0, help="Length of each load; two a turn.")
@click.option(
    "--trained",
    nargs=5,
    multiple=True,
    metavar="NAME CHECKPOINT IMAGES ANNOTATIONS CALIBRATION",
    help="A detector to score in FP32 and INT8; CALIBRATION is a folder or a COCO JSON; can be repeated.",
)
def model_table(
    output: Path | None,
    json_path: Path | None,
    work: Path,
    chosen: tuple[str, ...],
    no_backbones: bool,
    size: int,
    rounds: int,
    seconds: float,
    trained: tuple[tuple[str, str, str, str, str], ...],
) -> None:
    """Measure every backbone in every precision through the server, and write the table as a page.

    Half an hour on two cores that have nothing else to do. What is measured is kept under --work: the same command
    goes on where it stopped, and measures nothing twice.
    """
    from retinaserve.scripts.lab.model_table import Options, Table, Trained, measure, score
    from retinaserve.scripts.lab.model_table_page import COST, TRAINED, cost_lines, page, trained_line

    table = Table.open(work, Options(size, rounds, seconds))
    named = [Trained(each[0], *map(Path, each[1:])) for each in trained]
    for each in named:
        each.check()  # before the long work
    _say(COST)
    for backbone in () if no_backbones else chosen:
        if backbone not in table.backbones:
            measure(table, backbone, say=_say)
            _write(output, page(table))
        for line in cost_lines(table, backbone):
            _say(line)
    if named:
        _say(TRAINED)
    for each in named:
        if each.name not in table.trained:
            score(table, each, say=_say)
        _say(trained_line(each.name, table.trained[each.name]))
    if output:
        _write(output, page(table))
    else:
        click.echo(page(table), nl=False)
    if json_path:
        write_json(json_path, table.to_dict())
    click.echo(f"every round's numbers: {table.path}; remove it to measure anew", err=True)
    name_next("retinaserve precisions CHECKPOINT --images DIR --annotations FILE.json")


def _write(output: Path | None, text: str) -> None:
    """Replace the page in one step, after every row: an interrupted run leaves what it has measured."""
    if output:
        write_text(output, text)


def _say(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    model_table()
