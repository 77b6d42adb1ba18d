"""What a model is, in one frozen dataclass, whatever file described it."""

from dataclasses import dataclass, replace

from ventoux.errors import ConfigError

LONGEST = 1 << 30  # positions of a context or a window, far beyond any model; no product of sizes overflows


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a Mistral-like decoder.

    windows[l] is the sliding window of layer l in keys, the query's own included, or None for full attention.
    context_length is how many positions the model was made for; a prompt and its answer have to fit into it.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    context_length: int
    windows: tuple[int | None, ...]
    tie_embeddings: bool = False
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    @property
    def window(self) -> int | None:
        """The widest window, None when a layer attends to everything: what bounds the KV cache."""
        return None if None in self.windows else max(w for w in self.windows if w is not None)

    def with_window(self, window: int | None) -> "ModelConfig":
        """The same model with one window in every layer, None for full attention: what a file says wrongly, or not."""
        if window is not None and (type(window) is not int or not 1 <= window <= LONGEST):
            raise ConfigError(f"the window must be a whole number of keys from 1 to {LONGEST}, found {window!r}")
        return replace(self, windows=(window,) * self.num_layers)
