"""What this machine offers: instruction sets and cores."""

import os
from pathlib import Path

from ventoux.cpu import _kernels
from ventoux.errors import VentouxError


def instruction_sets() -> list[str]:
    """Names of the kernels' instruction sets that this machine can run, best first; "portable" is always there."""
    return _kernels.instruction_sets()


def isa() -> str:
    """The instruction set to use: the best, or what the environment variable VENTOUX_ISA names."""
    available = instruction_sets()
    chosen = os.environ.get("VENTOUX_ISA") or available[0]
    if chosen not in available:
        raise VentouxError(
            f"VENTOUX_ISA is {chosen!r}, but this machine runs {', '.join(available)}; unset it or choose one"
        )
    return chosen


def physical_cores() -> int:
    """Cores that this process may use, two hyperthreads of one core counted once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cpus = os.sched_getaffinity(0)
    cores = set()
    for cpu in cpus:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            cores.add(tuple((topology / name).read_text() for name in ("physical_package_id", "core_id")))
        except OSError:  # containers may hide the topology
            return len(cpus)
    return len(cores)
