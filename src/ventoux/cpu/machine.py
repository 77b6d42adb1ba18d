"""What this machine offers: instruction sets and cores."""

import os
from contextlib import suppress
from pathlib import Path

from ventoux.cpu import _kernels
from ventoux.errors import VentouxError

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# Of control groups, by the name in /proc/self/cgroup (version 2 has none): where they are, and in which files of each
# its limit is, and, by this name, what it holds that is no cache of files.
CONTROLLERS = {"": (".", "memory.max", "anon"), "memory": ("memory", "memory.limit_in_bytes", "total_rss")}


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


def spare_memory() -> int:
    """Bytes that this process may still take while only caches of files have to go; 0 where the system does not say."""
    try:
        fields = dict(line.split(":", 1) for line in (PROC / "meminfo").read_text().splitlines())
        spare = int(fields["MemAvailable"].split()[0]) * 1024
        groups = (PROC / "self/cgroup").read_text().splitlines()
    except (OSError, KeyError, ValueError):
        return 0
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers in CONTROLLERS:
            folder, *names = CONTROLLERS[controllers]
            spare = min([spare, *_left(path.strip("/"), GROUPS / folder, *names)])
    return max(spare, 0)


def _left(path: str, root: Path, limit: str, held: str) -> list[int]:
    """Bytes left to a control group and to those around it, of those that have a limit."""
    found = []
    for folder in [root / path, *(root / path).parents]:  # a container may see its own group as the root alone
        with suppress(OSError, ValueError, KeyError):  # "max": no limit
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            found.append(int((folder / limit).read_text()) - int(stat[held]))
        if folder == root:
            break
    return found
