"""`doctor`: what is installed, what is missing, what does not fit together."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from retinaserve.scripts.cli.options import PATH
from retinaserve.scripts.cli.output import name_next
from retinaserve.scripts.doctor.check import Check, Probe, Status, examine
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import write_json

COLOURS = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "red"}
PORTS = (8000, 8001, 8002)


@click.command()
@click.option(
    "--profile", type=click.Choice(["cpu", "gpu"]), default="cpu", help="What this machine is meant to run."
)
@click.option(
    "--plugins",
    type=PATH,
    default=Path("build/plugins/libretinaserve_plugins.so"),
    help="Library of our TensorRT plugins.",
)
@click.option("--plan", type=PATH, help="A TensorRT plan that is to run here.")
@click.option("--quick", is_flag=True, help="Start nothing: leave out server, perf_analyzer, DALI and OpenVINO.")
@click.option("--json", "json_path", type=PATH, help="Also write the checks to this file.")
def doctor(profile: str, plugins: Path, plan: Path | None, quick: bool, json_path: Path | None) -> None:
    """Look at this machine: what is installed, what is missing, what does not fit together.

    A line each, ok, warn or fail, with what to do about it. Exits with 1 if a line says fail.
    """
    done: list[Check] = []
    for check in examine(_probes(profile, plugins, plan, quick=quick)):
        done.append(check)
        click.echo(f"{click.style(f'{check.status:<5}', fg=COLOURS[check.status])}{check.name:<17}{check.detail}")
        if check.remedy and check.status is not Status.OK:
            click.echo(f"{'':<22}-> {check.remedy}")
    counts = {status: sum(check.status is status for check in done) for status in Status}
    if json_path:
        report = {"profile": profile, "checks": [asdict(check) for check in done], "counts": counts}
        write_json(json_path, report)
    if counts[Status.FAIL]:
        raise UserError(
            f"{counts[Status.FAIL]} of {len(done)} checks failed",
            "the lines above say what to do",
            code=Exit.CHECK_FAILED,
        )
    click.echo(f"checks: {len(done)}, warnings: {counts[Status.WARN]}", err=True)
    name_next("retinaserve demo" if profile == "cpu" else "retinaserve export MODEL.pth OUT.plan")


def _probes(profile: str, library: Path, plan: Path | None, *, quick: bool) -> Iterator[Probe]:
    from retinaserve.scripts.doctor import gpu, machine, packages, serving

    needed = profile == "gpu"
    yield packages.python
    yield _named("packages", partial(packages.packages, profile))
    yield packages.pins
    yield machine.cpu
    yield machine.memory
    yield machine.shared_memory
    yield machine.disk
    yield _named("ports", partial(machine.ports, *PORTS))
    if not quick:
        yield serving.dali
        if not needed:
            yield serving.openvino
            yield serving.embedded_triton
        yield serving.perf_analyzer
    yield _named("CUDA driver", partial(gpu.driver, needed=needed))
    yield _named("TensorRT", partial(gpu.tensorrt, needed=needed))
    yield gpu.container
    yield _named("plugins", partial(gpu.plugins, library, needed=needed))
    if plan:
        yield _named("plan", partial(gpu.plan, plan, library))


def _named(name: str, probe: "partial[Check]") -> Probe:
    """Give a probe with arguments the name that its failure is shown under."""

    def run() -> Check:
        return probe()

    run.__name__ = name
    return run
