"""Which backend computes, and with what settings."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ventoux.batch import Backend
from ventoux.checkpoint import Checkpoint, Tensor
from ventoux.config import ModelConfig
from ventoux.errors import OutOfMemoryError, RequestError, shown

Make = Callable[[ModelConfig, Mapping[str, Tensor]], Backend]


def choose(name: str, kernels: dict[str, Any], *, device: str | None, dtype: str | None, threads: int | None) -> Make:
    """What makes a backend of config and tensors. Raises RequestError for settings that it would have to ignore."""
    if name == "cpu":
        for setting, value in (("device", device), ("dtype", dtype)):
            if value is not None:
                raise RequestError(f"{setting} {shown(value)} is for the pytorch backend, and this is the cpu backend")
        from ventoux import cpu

        return partial(cpu.Backend, threads=threads, **kernels)
    if name != "pytorch":
        raise RequestError(f"backend must be cpu or pytorch, found {shown(name)}")
    for setting, value in kernels.items():
        if value != "auto":
            raise RequestError(f"{setting} {shown(value)} is for the cpu backend; the pytorch backend has dtype")
    from ventoux.pytorch import backend

    where, numbers = backend.choose("cpu" if device is None else device, dtype, threads)
    return partial(backend.Backend, device=where, dtype=numbers, threads=threads)


def compute_with(
    make: Make, found: Checkpoint, config: ModelConfig, *, adapters: Mapping[str, str | Path] | None = None
) -> Backend:
    """The backend of a checkpoint's weights, with LoRA adapters: names -> folders.

    Raises OutOfMemoryError, which names the checkpoint, and for adapters as `Backend.load_adapter` does.
    """
    if adapters is not None and not isinstance(adapters, Mapping):
        raise RequestError(f"adapters must be a dict from names to folders, found {shown(adapters)}")
    if adapters:
        from ventoux.checkpoint.adapter import read_adapter

        for folder in adapters.values():
            read_adapter(folder, config)  # before the weights, which take longer
    try:
        backend = make(config, found.tensors)
    except OutOfMemoryError:
        raise
    except MemoryError as error:
        raise OutOfMemoryError(
            f"{found.path}: its weights take {found.nbytes} bytes, more memory than the system gives;"
            " use a smaller or more strongly quantized model"
        ) from error
    for name, folder in (adapters or {}).items():
        backend.load_adapter(name, folder)
    return backend
