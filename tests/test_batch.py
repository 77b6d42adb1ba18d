"""Index arithmetic of the seam."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ventoux.batch import Batch, Segment

segments = st.lists(
    st.builds(
        lambda start, ids, logits: (start, ids, min(logits, len(ids))),
        st.integers(0, 50),
        st.lists(st.integers(0, 9), max_size=5),
        st.integers(0, 5),
    ),
    max_size=6,
)


@given(segments, st.sampled_from([list, tuple, np.array, lambda ids: np.array(ids, np.int32)]))
def test_segments_are_laid_end_to_end(parts: list[tuple[int, list[int], int]], kind: Any) -> None:
    batch = Batch.pack([Segment(slot, start, kind(ids), logits) for slot, (start, ids, logits) in enumerate(parts)])
    tokens = [
        (token_id, start + i, len(ids) - i <= logits) for start, ids, logits in parts for i, token_id in enumerate(ids)
    ]
    assert batch.ids.tolist() == [token_id for token_id, _, _ in tokens]
    assert batch.positions.tolist() == [position for _, position, _ in tokens]
    assert batch.logit_rows.tolist() == [row for row, (_, _, wanted) in enumerate(tokens) if wanted]
    spans = zip(batch.slots.tolist(), batch.starts.tolist(), batch.counts.tolist(), strict=True)
    assert list(spans) == [(slot, start, len(ids)) for slot, (start, ids, _) in enumerate(parts) if ids]
    arrays = batch.ids, batch.positions, batch.logit_rows, batch.slots, batch.starts, batch.counts
    assert all(array.dtype == np.int32 for array in arrays)


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
