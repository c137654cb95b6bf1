"""The machine that a number was measured on.

machine()                   # {"cpu": "AMD EPYC 7B13", "cores": 2, "system": "Linux-6.1..."}
cpu_facts()["flags"]
"""

import os
import platform
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")
# What makes bf16 fast, by the names of /proc/cpuinfo.
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")


def cpu_facts(cpuinfo: Path = CPUINFO) -> dict[str, str]:
    """Return what Linux knows of the first processor, by its names; nothing on another system."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    pairs = [line.split(":", 1) for line in lines if ":" in line]
    return {key.strip(): value.strip() for key, value in reversed(pairs)}


def flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Return what the processor can do, by the names Linux has for it."""
    facts = cpu_facts(cpuinfo)
    return frozenset((facts.get("flags") or facts.get("Features") or "").split())


def cpu_model() -> str:
    """Return the processor's name, its architecture where it has none."""
    return cpu_facts().get("model name") or platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Describe this machine for JSON; a server that is measured may run on another."""
    return {"cpu": cpu_model(), "cores": len(os.sched_getaffinity(0)), "system": platform.platform()}
