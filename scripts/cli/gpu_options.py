"""The options of `build` that only the GPU profile has.

    @gpu_options
    def build(..., **gpu): options = BuildOptions(..., **gpu_build_options(gpu)); target = target_of(gpu)

They say which server a repository is for; what a plan needs is in its manifest (build_tools/engine/manifest.py).
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from retinaserve.scripts.cli.options import PATH

if TYPE_CHECKING:
    from retinaserve.build_tools.engine.manifest import Target

Command = TypeVar("Command", bound=Callable[..., Any])

OPTIONS = (
    click.option(
        "--triton-version",
        metavar="VERSION",
        default="26.08",
        help="GPU profile: the server it is for, as its container's version or its own (2.72).",
    ),
    click.option(
        "--plugins",
        type=PATH,
        help="GPU profile: the plugin library the server will load, compared with the plan's.",
    ),
    click.option(
        "--tensorrt", metavar="VERSION", help="GPU profile: the server's TensorRT; this machine's if not given."
    ),
    click.option(
        "--compute-capability",
        metavar="N.N",
        help="GPU profile: that of the GPU which will serve, such as 8.9; this machine's if not given.",
    ),
    click.option(
        "--max-inflight",
        type=click.IntRange(min=0),
        default=0,
        help="GPU profile: requests between two steps, at most; 0: no limit. From Triton 25.11 on.",
    ),
)
GPU_OPTIONS = ("triton_version", "plugins", "tensorrt", "compute_capability", "max_inflight")


def gpu_options(command: Command) -> Command:
    """Add the options to a command, in their order."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def gpu_build_options(gpu: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of BuildOptions that the options set."""
    from retinaserve.build_tools.repository.configs import triton_version

    return {"triton": triton_version(gpu["triton_version"]), "max_inflight": gpu["max_inflight"]}


def target_of(gpu: Mapping[str, Any]) -> "Target":
    """Return where the plan will run: this machine, or what the options say of another."""
    from retinaserve.build_tools.engine.gpu import this_target
    from retinaserve.build_tools.engine.manifest import Target

    here = this_target(gpu["plugins"])
    if not gpu["tensorrt"] and not gpu["compute_capability"]:
        return here
    # Another machine than this one: what this one has says nothing of it.
    return Target(gpu["tensorrt"] or "", "", gpu["compute_capability"] or "", here.plugins_sha256)
