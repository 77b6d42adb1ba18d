"""Attention over the last W keys on a CPU: cut into pieces that torch's flash attention computes without a mask.

A mask is what makes windows slow: it is read for each score, and scores that it hides are computed. But a window has
few shapes in it. Of a block of n <= W queries, W=4, n=3, queries 4 5 6:

    keys   1 2 3  4 5 6
    4      r r a  c          c  causal: the block's own keys
    5        r a  c c        a  all of the block sees them
    6          a  c c c      r  reversed: with queries and keys turned round it is causal

Each piece gives its output and the logarithm of the sum of its exponentials, by which outputs are added up exactly.
With n = W there is no `a`. Backward, each piece takes the sum of all: gradients are exact, and nothing is T x T.

B batch, K KV heads, G heads that share one, T queries, S keys, D head_dim. Query t stands at key `offset + t`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ventoux.pytorch.blocks import additive, band

SHORT = 256  # fewer queries are not worth cutting up
_MASKED = 256  # queries of a block that has a mask
_SMALL = 1024  # windows below: more pieces cost more than reading a mask
_RUN = 16  # sequences and paddings that are shorter on the average: likewise

_forward = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_backward = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


def fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `window_attention` takes them: torch's operator is not public, and knows these cases."""
    tensors = (query, key, value)
    return (
        _forward is not None
        and _backward is not None
        and all(x.device.type == "cpu" and x.dtype == query.dtype for x in tensors)
        and query.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
        and query.shape[-1] == value.shape[-1]
        and not torch._C._are_functorch_transforms_active()  # torch.func does not look into operators
    )


@dataclass(frozen=True)
class Piece:
    """Queries first .. last - 1 and keys low .. high - 1, both counted as keys are."""

    kind: Literal["causal", "all", "reversed", "masked"]
    first: int
    last: int
    low: int
    high: int


Runs = list[tuple[int, int, int]]  # (number, begin, end): keys begin .. end - 1 are of the segment of this number


def runs_of(segments: Tensor | None, length: int) -> Runs:
    """int [S] -> its runs: -1 -1 0 0 0 -> (-1, 0, 2), (0, 2, 5)."""
    if segments is None:
        return [(0, 0, length)]
    begins = [0, *(segments.diff().nonzero().flatten() + 1).tolist()]
    return list(zip(segments[begins].tolist(), begins, [*begins[1:], length], strict=True))


def plan(runs: Runs, *, offset: int, window: int) -> Iterator[list[Piece]]:
    """For blocks of queries, in order, their pieces; the first of a block has all of its queries."""
    length = runs[-1][2]
    if (window < _SMALL and window < length) or len(runs) * _RUN > length:
        for first in range(offset, length, _MASKED):
            last = min(first + _MASKED, length)
            yield [Piece("masked", first, last, max(0, first - window + 1), last)]
        return
    for i, (number, begin, end) in enumerate(runs):
        for first in range(max(begin, offset), end, window):
            last = min(first + window, end)
            pieces = [Piece("causal", first, last, first, last), *_before(first, last, begin, first, window)]
            for other, low, high in runs[:i]:  # a segment with a hole
                pieces += _before(first, last, low, high, window) if other == number else ()
            yield pieces


def _before(first: int, last: int, low: int, high: int, window: int) -> Iterator[Piece]:
    """What queries first .. last - 1 see of the earlier keys low .. high - 1.

    W=4, queries 4 5 6: of 0 1 2 3, all see 3; 4 sees 1 2 and 5 sees 2, reversed. Of 0 1 alone, 4 sees 1.
    """
    low = max(low, first - window + 1)
    middle = max(low, last - window)  # all see the keys from here on
    if middle < high:
        yield Piece("all", first, last, middle, high)
    high = min(middle, high)
    if low < high:
        yield Piece("reversed", first, high + window - 1, low, high)


class _Row:
    """One row's tensors and how pieces are cut out of them: query [K, G, T, D], key and value [K, G, S, D]."""

    def __init__(self, key: Tensor, value: Tensor, segments: Tensor | None, *, offset: int, window: int) -> None:
        self.key, self.value, self.segments, self.offset, self.window = key, value, segments, offset, window
        self._band: Tensor | None = None

    def blocks(self) -> Iterator[list[tuple[Piece, Tensor | None]]]:
        """The plan, each piece with its mask [1, 1, n, m] if it has one."""
        for pieces in plan(runs_of(self.segments, self.key.shape[2]), offset=self.offset, window=self.window):
            yield [self._trimmed(piece) if piece.kind == "masked" else (piece, None) for piece in pieces]

    def _trimmed(self, piece: Piece) -> tuple[Piece, Tensor]:
        """A masked piece without the keys that no query sees, which are of earlier sequences."""
        first, last, low = piece.first, piece.last, piece.low
        if self.segments is None:
            shape = (1, 1, last - first, last - low)
            if self._band is None or self._band.shape != shape:  # most blocks have the same
                self._band = additive(band(first, last, low, self.window, self.key.device), self.key.dtype)[None, None]
            return piece, self._band
        seen = band(first, last, low, self.window, self.key.device)
        seen &= self.segments[first:last, None] == self.segments[low:last]
        unseen = int(seen.any(0).int().argmax())
        mask = additive(seen[:, unseen:], self.key.dtype)
        return Piece("masked", first, last, low + unseen, last), mask[None, None]

    def queries(self, x: Tensor, piece: Piece) -> Tensor:
        """A piece's part of [K, G, T, ...]."""
        part = x[:, :, piece.first - self.offset : piece.last - self.offset]
        return part.flip(2) if piece.kind == "reversed" else part

    def keys(self, piece: Piece) -> tuple[Tensor, Tensor]:
        key, value = self.key[:, :, piece.low : piece.high], self.value[:, :, piece.low : piece.high]
        if piece.kind == "reversed":  # one head of each group is turned: the others are the same memory
            key, value = (x[:, :1].flip(2).expand(x.shape) for x in (key, value))
        return key, value


def _straight(x: Tensor, piece: Piece) -> Tensor:
    return x.flip(2) if piece.kind == "reversed" else x


def _rows(
    query: Tensor, key: Tensor, value: Tensor, segments: Tensor | None, *, offset: int, window: int
) -> Iterator[tuple[_Row, int, Tensor]]:
    """Row by row its tensors, all of them views: with its number and query [K, G, T, D]."""
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    for b in range(query.shape[0]):
        q = _grouped(query[b], key.shape[1])
        k, v = (x[b][:, None].expand(-1, q.shape[1], -1, -1) for x in (key, value))
        yield _Row(k, v, None if segments is None else segments[b], offset=offset, window=window), b, q


def _grouped(x: Tensor, kv_heads: int) -> Tensor:
    """[H, T, ...] -> [K, G, T, ...]."""
    return x.view(kv_heads, -1, *x.shape[1:])


@torch.library.custom_op("ventoux::window_attention", mutates_args=())
def window_attention(
    query: Tensor, key: Tensor, value: Tensor, segments: Tensor | None, window: int, offset: int, scale: float
) -> tuple[Tensor, Tensor]:
    """query [B, H, T, D], key and value [B, K, S, D] with S = offset + T -> [B, H, T, D], and for the backward pass the
    logarithms of the sums of exponentials, [B, H, T].

    segments int [B, S] or None: keys are seen by queries of the same number. One operator to autograd and to
    torch.compile, which could not follow a plan that depends on the segments.
    """
    out, lse = _empty(query)
    for row, b, q in _rows(query, key, value, segments, offset=offset, window=window):
        row_out, row_lse = _grouped(out[b], key.shape[1]), _grouped(lse[b], key.shape[1])
        for block in row.blocks():
            at = slice(block[0][0].first - offset, block[0][0].last - offset)
            row_out[:, :, at], row_lse[:, :, at] = _block(row, q, block, scale)
    return out, lse


def _block(row: _Row, q: Tensor, block: list[tuple[Piece, Tensor | None]], scale: float) -> tuple[Tensor, Tensor]:
    """The attention of a block's n queries, added up from its pieces: [K, G, n, D], and [K, G, n]."""
    out, lse = _flash(row, q, *block[0], scale)
    if len(block) > 1:
        out = out.to(lse.dtype)  # sums are not rounded to 16 bits on the way
    for piece, mask in block[1:]:
        n = piece.last - piece.first
        part, log = _flash(row, q, piece, mask, scale)
        share = torch.sigmoid(lse[:, :, :n] - log)  # of what is there, next to the part
        torch.lerp(part.to(lse.dtype), out[:, :, :n], share.unsqueeze(-1), out=out[:, :, :n])
        torch.logaddexp(lse[:, :, :n], log, out=lse[:, :, :n])
    return out, lse


def _flash(row: _Row, q: Tensor, piece: Piece, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    assert _forward is not None
    causal = piece.kind in ("causal", "reversed")
    out, lse = _forward(row.queries(q, piece), *row.keys(piece), 0.0, causal, attn_mask=mask, scale=scale)
    return _straight(out, piece), _straight(lse, piece)


@window_attention.register_fake
def _empty(query: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """Room for the output, laid out as [B, T, H, D], which is what the output projection reads, and for the sums."""
    B, H, T, D = query.shape
    exact = torch.float64 if query.dtype == torch.float64 else torch.float32
    return query.new_empty(B, T, H, D).transpose(1, 2), query.new_empty(B, H, T, dtype=exact)


@torch.library.custom_op("ventoux::window_attention_backward", mutates_args=())
def window_attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Tensor | None,
    out: Tensor,
    lse: Tensor,
    window: int,
    offset: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of the output [B, H, T, D] -> those of query, key and value."""
    assert _backward is not None
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    sums = [torch.zeros_like(x, dtype=lse.dtype) for x in (query, key, value)]
    for row, b, q in _rows(query, key, value, segments, offset=offset, window=window):
        of_query, outer, given, logs = (_grouped(x[b], key.shape[1]) for x in (sums[0], out, grad, lse))
        for piece, mask in (pair for block in row.blocks() for pair in block):
            grads = _backward(
                row.queries(given, piece),
                row.queries(q, piece),
                *row.keys(piece),
                row.queries(outer, piece),
                row.queries(logs, piece),
                0.0,
                piece.kind in ("causal", "reversed"),
                attn_mask=mask,
                scale=scale,
            )
            of_query[:, :, piece.first - offset : piece.last - offset] += _straight(grads[0], piece)
            for total, part in zip(sums[1:], grads[1:], strict=True):
                total[b, :, piece.low : piece.high] += _straight(part, piece).sum(1, dtype=total.dtype)
    return sums[0].to(query.dtype), sums[1].to(query.dtype), sums[2].to(query.dtype)


@window_attention_backward.register_fake
def _empty_gradients(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, segments, *ctx.settings = inputs
    ctx.save_for_backward(query, key, value, segments, *output)
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    grads = window_attention_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return (*grads, None, None, None, None)


window_attention.register_autograd(_gradients, setup_context=_save)
