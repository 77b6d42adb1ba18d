"""The CPU backend: numpy and our own C++ kernels."""

from ventoux.cpu.limits import Limits, Memory, measure_limits
from ventoux.cpu.machine import instruction_sets, isa, physical_cores
from ventoux.cpu.model import Backend

__all__ = ["Backend", "Limits", "Memory", "instruction_sets", "isa", "measure_limits", "physical_cores"]
