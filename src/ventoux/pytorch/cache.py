"""A key/value cache of W positions, as transformers' models take one."""

import sys
from typing import Any

import torch
from torch import Tensor
from transformers import MistralConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

_FIRST = 64  # positions that a ring begins with; it doubles until it has W


class RollingLayer(CacheLayerMixin):
    """One layer's last W keys and values: position p lives in slot p mod W, keys [B, K, min(W, grown), D].

    W=4, six positions seen: the slots hold 4 5 2 3, in order 2 3 4 5.

    What is handed out is in the order of positions, since masks are; a single query that needs no mask may take the
    ring as it lies (`in_order=False`), which saves a copy of the window for each token.

    Speculation: after `activate_past_recording()` what falls out of the window is kept until `crop` says how many of
    the new positions to take back, so the keys that they pushed out come back too. Gradients do not pass.
    """

    is_sliding = True
    is_croppable = True
    keys: Any  # Tensor [B, K, slots, D], None before the first update
    values: Any

    def __init__(self, window: int) -> None:
        super().__init__()
        if window < 1:
            raise ValueError(f"a window is at least 1 position, found {window}")
        self.window = window
        self.seen = 0  # positions so far
        self.record_past = False  # under transformers' name, which it reads
        self._evicted: tuple[Tensor, Tensor] | None = None  # [B, K, n, D], the n positions before the ring's, in order

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.detach()[:, :, :0]
        self.values = value_states.detach()[:, :, :0]
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, in_order: bool = True, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store T new positions, [B, K, T, D] -> the keys and values that they see, min(seen, W - 1) + T of each."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        learns = torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad)
        if key_states.shape[2] == 1 and not learns:  # what is read from the ring has no gradient
            self._write(key_states, value_states)
            held = min(self.seen, self.window)
            return self._last(held) if in_order else (self.keys[:, :, :held], self.values[:, :, :held])
        # read before write: the chunk may overwrite keys that its first tokens still see
        past = self._last(min(self.seen, self.window - 1))
        full = torch.cat((past[0], key_states), 2), torch.cat((past[1], value_states), 2)
        self._write(key_states, value_states)
        return full

    def _write(self, keys: Tensor, values: Tensor) -> None:
        keys, values = keys.detach(), values.detach()
        if self.record_past:
            self._keep_evicted(keys, values)
        self.seen += keys.shape[2]
        self._reserve(min(self.seen, self.window))
        self._put(keys[:, :, -self.window :], values[:, :, -self.window :], end=self.seen)

    def _put(self, keys: Tensor, values: Tensor, *, end: int) -> None:
        """Write n <= W positions, the last of them end - 1, into their slots."""
        n = keys.shape[2]
        first = (end - n) % self.window
        wrapped = max(0, first + n - self.window)  # how many go to the ring's beginning
        for ring, new in ((self.keys, keys), (self.values, values)):
            ring[:, :, first : first + n - wrapped] = new[:, :, : n - wrapped]
            if wrapped:
                ring[:, :, :wrapped] = new[:, :, n - wrapped :]

    def _reserve(self, positions: int) -> None:
        if not torch.compiler.is_compiling() and self.keys.is_inference() and not torch.is_inference_mode_enabled():
            self.keys, self.values = self.keys.clone(), self.values.clone()  # torch forbids writing to it here
        capacity = self.keys.shape[2]
        if positions <= capacity:
            return
        # fewer slots than W: nothing has wrapped yet, and position p lies in slot p of the longer ring too
        capacity = min(self.window, max(positions, 2 * capacity, _FIRST))
        self.keys, self.values = (_longer(ring, capacity) for ring in (self.keys, self.values))

    def _last(self, n: int) -> tuple[Tensor, Tensor]:
        """The last n positions in order; a view where the ring has not wrapped."""
        if self.seen <= self.window:
            return self.keys[:, :, self.seen - n : self.seen], self.values[:, :, self.seen - n : self.seen]
        begin = (self.seen - n) % self.window
        end = begin + n - self.window
        if end <= 0:
            return self.keys[:, :, begin : begin + n], self.values[:, :, begin : begin + n]
        return (
            torch.cat((self.keys[:, :, begin:], self.keys[:, :, :end]), 2),
            torch.cat((self.values[:, :, begin:], self.values[:, :, :end]), 2),
        )

    def _keep_evicted(self, keys: Tensor, values: Tensor) -> None:
        held = min(self.seen, self.window)
        leaving = held + keys.shape[2] - self.window
        if leaving <= 0:
            return
        old = self._last(held)
        parts = [tuple(torch.cat((a, b), 2)[:, :, :leaving] for a, b in zip(old, (keys, values), strict=True))]
        if self._evicted is not None:
            parts.insert(0, self._evicted)
        self._evicted = (torch.cat([k for k, _ in parts], 2), torch.cat([v for _, v in parts], 2))

    def activate_past_recording(self) -> None:
        """From now on keep what falls out of the window until the next `crop`, so that it can be taken back."""
        self.record_past = True

    def stop_past_recording(self) -> None:
        """Keep nothing any more beside the window."""
        self.record_past, self._evicted = False, None

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -tokens_to_remove positions (0: none), and what was kept for doing so.

        Raises RuntimeError when keys would have to come back that were not kept.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes minus the number of positions to remove, found {tokens_to_remove}")
        left = self.seen + tokens_to_remove
        if left < 0:
            raise ValueError(f"cannot remove {-tokens_to_remove} positions from a cache that has seen {self.seen}")
        first, last = max(0, left - self.window), max(0, self.seen - self.window)
        missing = last - first  # evicted positions first .. last - 1, of which W or fewer are seen again
        if missing and left:
            if self._evicted is None or self._evicted[0].shape[2] < missing:
                raise RuntimeError(
                    f"cannot go back past the window: {missing} evicted positions were not kept; call"
                    " activate_past_recording() before the tokens that may be taken back"
                )
            keys, values = (kept[:, :, -missing:][:, :, : self.window] for kept in self._evicted)
            self._put(keys, values, end=first + keys.shape[2])
        self.seen = left
        self._evicted = None

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """-> how many keys `update` will hand out for this many queries, and the position of the first."""
        before = min(self.seen, self.window - 1)
        return before + query_length, self.seen - before

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return self.window

    def reset(self) -> None:
        """Forget everything; the next batch may have another size."""
        self.seen = 0
        self.keys = self.values = self._evicted = None
        self.is_initialized = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._each(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._each(lambda tensor: tensor.index_select(0, indices.to(tensor.device)))

    def _each(self, change: Any) -> None:
        if self.is_initialized:
            self.keys, self.values = change(self.keys), change(self.values)
        if self._evicted is not None:
            self._evicted = change(self._evicted[0]), change(self._evicted[1])

    @property
    def nbytes(self) -> int:
        held = [self.keys, self.values, *(self._evicted or ())] if self.is_initialized else []
        return sum(tensor.nbytes for tensor in held)


class RollingCache(DynamicCache):
    """Keys and values of all layers, W positions each (a growing cache where the config has no window).

    Pass it as `cache` (`past_key_values` before transformers 5.24); `generate()` makes one where it would make a
    DynamicCache. W = 4096 and 8192 tokens: half of what a full cache holds, and no more afterwards. A DynamicCache by
    kind, since tools take others for static.
    """

    def __init__(self, config: MistralConfig) -> None:
        window = config.sliding_window
        layers = [DynamicLayer() if window is None else RollingLayer(window) for _ in range(config.num_hidden_layers)]
        Cache.__init__(self, layers=layers)

    def check(self, config: MistralConfig) -> None:
        """Refuse to serve a model with other layers, or one that sees more keys than are kept. Raises ValueError."""
        wanted = config.sliding_window
        if len(self.layers) != config.num_hidden_layers:
            raise ValueError(f"the cache has {len(self.layers)} layers, and the model {config.num_hidden_layers}")
        if any(isinstance(layer, RollingLayer) and layer.window < (wanted or sys.maxsize) for layer in self.layers):
            raise ValueError(f"the cache keeps fewer keys than the model sees ({wanted}); make it from model.config")

    def stop_past_recording(self) -> None:
        """Keep nothing any more beside the window; `activate_past_recording` begins again."""
        for layer in self.layers:
            if isinstance(layer, RollingLayer):
                layer.stop_past_recording()

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values that are held."""
        return sum(
            layer.nbytes if isinstance(layer, RollingLayer) else layer.keys.nbytes + layer.values.nbytes
            for layer in self.layers
            if layer.is_initialized
        )


def _longer(ring: Tensor, capacity: int) -> Tensor:
    grown = ring.new_empty((*ring.shape[:2], capacity, ring.shape[3]))
    grown[:, :, : ring.shape[2]] = ring
    return grown
