"""The LoRA adapters of one backend, by the names that requests choose them by."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Generic, TypeVar

from ventoux.batch import Batch, Int32, check_adapter
from ventoux.checkpoint.adapter import Adapter, read_adapter
from ventoux.config import ModelConfig
from ventoux.errors import OutOfMemoryError, RequestError, shown

Made = TypeVar("Made")


class Adapters(Generic[Made]):
    """Names -> what a backend made of an adapter to compute with."""

    def __init__(self, config: ModelConfig, make: Callable[[Adapter], Made]) -> None:
        self._config = config
        self._make = make
        self._made: dict[str, Made] = {}

    @property
    def names(self) -> Collection[str]:
        return tuple(self._made)

    def load(self, name: str, folder: str | Path) -> None:
        """Raises CheckpointError, RequestError for a name that is taken or no name, OutOfMemoryError."""
        if not isinstance(name, str) or not name:
            raise RequestError(f"an adapter's name must be a text of at least one character, found {shown(name)}")
        self._check_free(name)
        adapter = read_adapter(folder, self._config)
        try:
            made = self._make(adapter)
        except MemoryError as error:
            raise OutOfMemoryError(f"{folder}: the adapter does not fit into memory; unload another one") from error
        self._check_free(name)  # reading takes a while, and another thread may have been faster
        self._made[name] = made

    def unload(self, name: str) -> None:
        """Raises RequestError when there is no adapter of this name."""
        check_adapter(name, self._made)
        del self._made[name]

    def of(self, batch: Batch) -> list[tuple[Made, slice | Int32]]:
        """Each adapter that a batch uses and the rows that use it. Raises RequestError for one that is not there."""
        rows = batch.adapter_rows()
        for name in rows:
            check_adapter(name, self._made)
        return [(self._made[name], where) for name, where in rows.items()]

    def _check_free(self, name: str) -> None:
        if name in self._made:
            raise RequestError(f"there is an adapter {shown(name)} already; unload it first, or take another name")
