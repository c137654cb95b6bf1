"""The .plan half of `export`: its options, and what it tells."""

import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from retinaserve.scripts.cli.options import PATH
from retinaserve.scripts.cli.output import name_next
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import write_json

if TYPE_CHECKING:
    import onnx

    from retinaserve.build_tools.engine.plan import BuiltPlan
    from retinaserve.build_tools.export import ExportOptions

PLUGINS = Path("build/plugins/libretinaserve_plugins.so")
SHOWN = 5
Verb = TypeVar("Verb", bound=Callable[..., Any])

_PLAN = (
    click.option(
        "--batch",
        type=click.IntRange(1),
        nargs=3,
        metavar="MIN OPT MAX",
        default=(1, 8, 16),
        help="Plan: batch sizes it takes, and the one it is fastest at.",
    ),
    click.option(
        "--timing-cache", type=PATH, metavar="FILE", help="Plan: keep timings here, for quicker builds to come."
    ),
    click.option("--plugins", type=PATH, default=PLUGINS, help="Plan: the library of our TensorRT plugins."),
)


@dataclass(frozen=True)
class PlanChoices:
    """What a user chooses for a plan."""

    batch: tuple[int, int, int]
    timing_cache: Path | None
    plugins: Path


def plan_options(verb: Verb) -> Verb:
    """Give a verb the options of plans."""
    for option in reversed(_PLAN):
        verb = option(verb)
    return verb


def export_plan(
    model: Path,
    plan: Path,
    options: "ExportOptions",
    choices: PlanChoices,
    json_path: Path | None,
    calibration_progress: Any,
) -> None:
    """Build a plan from a checkpoint or an exported graph, and say what came of it."""
    from retinaserve.build_tools.engine.builder import EngineOptions, load_tensorrt
    from retinaserve.build_tools.engine.plan import build_plan
    from retinaserve.build_tools.export import export_detector, record_path
    from retinaserve.build_tools.graph.onnx_io import OnnxGraph

    engine = EngineOptions(choices.batch, choices.plugins, choices.timing_cache)
    if model.suffix == ".onnx":
        _refuse_options()
    trt = load_tensorrt()  # what is missing is said before the minutes that come first
    with tempfile.TemporaryDirectory(prefix="retinaserve-") as scratch:
        graph, record = model, {}
        if model.suffix != ".onnx":
            graph = Path(scratch) / "model.onnx"
            record = export_detector(model, graph, options, progress=calibration_progress)
        if not OnnxGraph.read(graph).custom_operators():
            engine = EngineOptions(choices.batch, None, choices.timing_cache)
        with percent_bar() as show:
            built = build_plan(graph, plan, engine, trt=trt, progress=show)
    if record:
        write_json(record_path(plan), record)
    tell_plan(plan, built)
    if json_path:
        report = {"plan": str(plan), "seconds": round(built.engine.seconds, 1), **asdict(built.engine.report)}
        report["manifest"] = json.loads(built.manifest.to_json())
        write_json(json_path, report)
    name_next(f"retinaserve build {shlex.quote(str(plan))} --profile gpu --output repository")


def tell_plan(plan: Path, built: "BuiltPlan") -> None:
    """Say what was built, for what, and where it is not as its graph states."""
    manifest, report = built.manifest, built.engine.report
    low, best, high = manifest.batch
    where = f"{manifest.gpu} ({manifest.compute_capability})" if manifest.gpu else manifest.compute_capability
    what = f"{manifest.precision} for {where}, TensorRT {manifest.tensorrt}, batch {low} to {high}, best at {best}"
    click.echo(f"{plan}: {what}, {len(built.engine.data) / 1e6:.1f} MB, built in {built.engine.seconds:.0f} s")
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report.convolutions.items())) or "none named"
    fallen = f"{len(report.fallen)} of them in a wider type than the graph's"
    click.echo(f"{report.layers} layers; convolutions: {kinds}; {fallen}", err=True)
    for name in report.fallen[:SHOWN]:
        click.secho(f"fell back: {name}", fg="yellow", err=True)
    for remark in built.engine.remarks:
        click.secho(remark, fg="yellow", err=True)


def tell_rounding(model: "onnx.ModelProto") -> dict[str, Any]:
    """Say what FP16 did to a graph's weights, and return it for JSON."""
    from retinaserve.build_tools.graph.float16 import Rounding

    rounding = Rounding.read(model)
    click.echo(
        f"weights in FP16: {rounding.values} values up to {rounding.largest:.3g}, "
        f"{rounding.denormal} below 6.1e-5 with fewer digits, {rounding.zeroed} below 3e-8 became zero",
        err=True,
    )
    return asdict(rounding)


def _refuse_options() -> None:
    """An exported graph has its size, flavour and precision already."""
    context = click.get_current_context()
    for name in ("size", "flavour", "precision", "calibration_images"):
        if context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE:
            raise UserError(
                f"--{name.replace('_', '-')} means nothing for an .onnx: it was chosen when that was exported",
                "export the checkpoint with it",
                code=Exit.USAGE,
            )


@contextmanager
def percent_bar() -> Iterator[Callable[[float, str], None]]:
    """Give a function that shows, on a terminal, which share of a build is done and what is being done."""
    from tqdm import tqdm

    # `disable=None` shows the bar on a terminal only.
    with tqdm(total=100, unit="%", file=sys.stderr, disable=None, leave=False, dynamic_ncols=True) as bar:
        shown: tuple[int, str] | None = None

        def show(share: float, doing: str) -> None:
            nonlocal shown
            if (int(100 * share), doing) != shown:  # it is called thousands of times
                shown = int(100 * share), doing
                bar.n = shown[0]
                bar.set_description(doing)

        yield show
