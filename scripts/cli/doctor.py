"""`doctor`: what is installed, what is missing, what does not fit together."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from retinaserve.scripts.cli.options import PATH, also_json_option
from retinaserve.scripts.cli.output import name_next, note
from retinaserve.training.errors import Exit, UserError
from retinaserve.training.files import write_json

if TYPE_CHECKING:
    from retinaserve.scripts.doctor.machine import Check

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
PORTS = (8000, 8001, 8002)


@click.command()
@click.option("--profile", type=click.Choice(["cpu", "gpu"]), default="cpu", help="What is to run here.")
@click.option(
    "--plugins",
    type=PATH,
    default=Path("build/plugins/libretinaserve_plugins.so"),
    help="Library of our TensorRT plugins.",
)
@click.option("--plan", type=PATH, help="A TensorRT plan that is to run here.")
@click.option("--quick", is_flag=True, help="Start nothing: leave out server, perf_analyzer, DALI and OpenVINO.")
@also_json_option
def doctor(profile: str, plugins: Path, plan: Path | None, quick: bool, json_path: Path | None) -> None:
    """Look at this machine: what is installed, what is missing, what does not fit together.

    A line each, ok, warn or fail, with what to do about it. Exits with 1 if a line says fail.
    """
    from retinaserve.scripts.doctor.machine import examine

    done: list[Check] = []
    for check in examine(_probes(profile, plugins, plan, quick=quick)):
        done.append(check)
        click.echo(f"{click.style(f'{check.status:<5}', fg=COLOURS[check.status])}{check.name:<17}{check.detail}")
        if check.remedy and check.status != "ok":
            click.echo(f"{'':<22}-> {check.remedy}")
    counts = {status: sum(check.status == status for check in done) for status in COLOURS}
    if json_path:
        report = {"profile": profile, "checks": [asdict(check) for check in done], "counts": counts}
        write_json(json_path, report)
    if counts["fail"]:
        raise UserError(
            f"{counts['fail']} of {len(done)} checks failed",
            "the lines above say what to do",
            code=Exit.CHECK_FAILED,
        )
    note(f"checks: {len(done)}, warnings: {counts['warn']}")
    name_next("retinaserve demo" if profile == "cpu" else "retinaserve export MODEL.pth OUT.plan")


def _probes(profile: str, library: Path, plan: Path | None, *, quick: bool) -> "dict[str, Callable[[], Check]]":
    from retinaserve.scripts.doctor import machine, parts

    needed = profile == "gpu"
    probes: dict[str, Callable[[], Check]] = {
        "python": machine.python,
        "packages": partial(machine.packages, profile),
        "pins": machine.pins,
        "cpu": machine.cpu,
        "memory": machine.memory,
        "shared memory": machine.shared_memory,
        "disk": machine.disk,
        "ports": partial(machine.ports, *PORTS),
    }
    if not quick:
        probes["DALI"] = parts.dali
        if not needed:
            probes |= {"OpenVINO": parts.openvino, "embedded Triton": parts.embedded_triton}
        probes["perf analyzer"] = parts.perf_analyzer
    probes |= {
        "CUDA driver": partial(parts.driver, needed=needed),
        "TensorRT": partial(parts.tensorrt, needed=needed),
        "container": parts.container,
        "plugins": partial(parts.plugins, library, needed=needed),
    }
    return probes | ({"plan": partial(parts.plan, plan, library)} if plan else {})
