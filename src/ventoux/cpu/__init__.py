"""The CPU backend: numpy and our own C++ kernels. Only `ventoux bench` asks for what is in `limits`."""

from ventoux.cpu.machine import instruction_sets, isa, physical_cores
from ventoux.cpu.model import Backend

__all__ = ["Backend", "instruction_sets", "isa", "physical_cores"]
