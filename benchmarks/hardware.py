"""What a measurement was made on: processor, memory, versions. Never a host's name or a path."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_ISA = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16", "sve", "bf16")


def machine() -> dict[str, Any]:
    """Facts about this machine and what else it is doing."""
    info = _fields("/proc/cpuinfo")
    flags = set((info.get("flags") or info.get("Features") or "").split())
    memory = _fields("/proc/meminfo").get("MemTotal", "0 kB").split()[0]
    return {
        "cpu": info.get("model name") or platform.machine(),
        "cores": available_cores(),
        "isa": [name for name in _ISA if name in flags],
        "memory_gb": round(int(memory) * 1024 / 1e9, 1),
        "os": _os(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def described(facts: dict[str, Any]) -> str:
    """The same in one sentence."""
    isa = ", ".join(facts["isa"]) or "no vector extensions named"
    return (
        f"{facts['cpu']} ({isa}), {facts['cores']} cores, {facts['memory_gb']:g} GB, no GPU used; {facts['os']}, "
        f"Python {facts['python']}; load before the measurement {facts['load_before']:g}."
    )


def additions_seconds() -> float:
    """How long one core takes for ten million additions in plain Python, now.

    A rented machine is not equally fast at all times: measurements can be compared where this was alike.
    """
    began, total = time.perf_counter(), 0
    for number in range(10_000_000):
        total += number
    return time.perf_counter() - began


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Installed versions by package name."""
    return {name: importlib.metadata.version(name) for name in packages}


def _fields(path: str) -> dict[str, str]:
    """The first value of each ``name: value`` of a file of /proc; nothing where there is no such file."""
    found: dict[str, str] = {}
    if Path(path).is_file():
        for line in Path(path).read_text().splitlines():
            name, colon, value = line.partition(":")
            if colon:
                found.setdefault(name.strip(), value.strip())
    return found


def _os() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()
