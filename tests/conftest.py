"""What every room's tests may ask for."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ventoux.checkpoint import pull
from ventoux.cpu import instruction_sets
from ventoux.decoding import sampling


@pytest.fixture(scope="session", autouse=True)
def nothing_kept():
    """Weights are packed each time, and the user's cache is left alone; tests of what is kept say otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VENTOUX_PACKED_GB", "0")
        yield


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The default model's file, which is fetched if it is not here yet."""
    return pull.resolve()


@pytest.fixture(params=instruction_sets())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each instruction set that this machine runs, chosen as a user chooses it."""
    monkeypatch.setenv("VENTOUX_ISA", request.param)
    sampling._isa.cache_clear()
    yield request.param
    sampling._isa.cache_clear()
