"""Index arithmetic of the seam."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ventoux.batch import Batch, Segment


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([None, "a", "b"])), min_size=1, max_size=7))
def test_each_adapter_has_the_rows_of_its_segments(parts: list[tuple[int, str | None]]) -> None:
    """Slices, where they can be: only those need no copy."""
    batch = Batch.pack([Segment(slot, 0, [7] * n, adapter=adapter) for slot, (n, adapter) in enumerate(parts)])
    wanted = [adapter for n, adapter in parts for _ in range(n)]
    found: list[str | None] = [None] * len(wanted)
    for name, rows in batch.adapter_rows().items():
        indices = np.arange(len(batch))[rows]
        assert len(indices)
        assert isinstance(rows, slice) == (np.diff(indices) == 1).all()
        for i in indices:
            found[i] = name
    assert found == wanted
