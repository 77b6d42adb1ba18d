"""mistral-src's params.json."""

from collections.abc import Mapping
from typing import Any

from ventoux.config.keys import LARGEST, Keys, checked, head_dim
from ventoux.config.model import ModelConfig
from ventoux.errors import shown

HARMLESS = frozenset({"max_batch_size"})
CONTEXT_LENGTH = 32768  # no raw file of a 7B says it; it is what all their Hugging Face twins say


def from_params(params: Mapping[str, Any], *, source: str, vocab_size: int | None = None) -> ModelConfig:
    """The model that a params.json describes; `source` names the file in errors.

    vocab_size stands in where the file has none. Without rope_theta, a file with a window means 1e4 (v0.1) and one
    without means 1e6 (v0.2). Raises ConfigError.
    """
    keys = Keys(params, source)
    num_layers = keys.size("n_layers", "layers")
    num_heads = keys.size("n_heads", "width")
    hidden_size = keys.size("dim", "width")
    windows = _windows(keys, num_layers)
    theta = 1e6 if windows == (None,) * num_layers else 1e4
    config = ModelConfig(
        vocab_size=keys.size("vocab_size", "vocabulary", default=vocab_size),
        hidden_size=hidden_size,
        intermediate_size=keys.size("hidden_dim", "width"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=keys.size("n_kv_heads", "width", default=num_heads),
        head_dim=head_dim(keys, "head_dim", hidden_size=hidden_size, num_heads=num_heads),
        rms_norm_eps=keys.number("norm_eps"),
        rope_theta=keys.number("rope_theta", default=theta),
        context_length=_context_length(keys),
        windows=windows,
        tie_embeddings=keys.flag("tied_embeddings"),
    )
    keys.must_be("model_type", "transformer")
    keys.must_be("use_biases", False)
    keys.must_be("causal", True)
    for feature in ("moe", "yarn", "lora", "quantization", "vision_encoder"):
        keys.must_be(feature)
    keys.finish(HARMLESS)
    return checked(config, source)


def _windows(keys: Keys, num_layers: int) -> tuple[int | None, ...]:
    """`sliding_window`, or its later spelling `_sliding_window`: one for all layers, or a pattern that repeats.

    6 layers with [null, 8, 8] have the windows null 8 8 null 8 8.
    """
    value, underscored = keys.take("sliding_window"), keys.take("_sliding_window")
    if value is not None and underscored is not None and value != underscored:
        keys.fail("sliding_window", "it contradicts _sliding_window")
    value = underscored if value is None else value
    pattern = value if isinstance(value, list) else [value]
    if not pattern or num_layers % len(pattern):
        keys.fail("sliding_window", f"a pattern of {len(pattern)} does not divide {num_layers} layers")
    for window in pattern:
        if window is not None and (type(window) is not int or not 1 <= window <= LARGEST["positions"]):
            keys.fail("sliding_window", f"expected null or a number of keys, at least 1, found {shown(window)}")
    return tuple(pattern) * (num_layers // len(pattern))


def _context_length(keys: Keys) -> int:
    longest = keys.size("max_seq_len", "positions", default=CONTEXT_LENGTH)
    return keys.size("max_position_embeddings", "positions", default=longest)


def to_params(config: ModelConfig) -> dict[str, Any]:
    """The params.json of a model; `from_params` gives the model back, but for bos and eos ids, which it cannot say.

    theta always stands there: readers disagree about what its absence means. Keys that mistral-src does not know are
    there only where the model needs them.
    """
    params: dict[str, Any] = {
        "dim": config.hidden_size,
        "n_layers": config.num_layers,
        "head_dim": config.head_dim,
        "hidden_dim": config.intermediate_size,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "vocab_size": config.vocab_size,
    }
    if config.windows != (None,) * config.num_layers:
        pattern = _pattern(config.windows)
        params["sliding_window"] = pattern[0] if len(pattern) == 1 else list(pattern)
    if config.context_length != CONTEXT_LENGTH:
        params["max_seq_len"] = config.context_length
    if config.tie_embeddings:
        params["tied_embeddings"] = True
    return params


def _pattern(windows: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """The shortest piece that the windows repeat: null 8 8 null 8 8 are null 8 8 twice."""
    lengths = (n for n in range(1, len(windows) + 1) if len(windows) % n == 0)
    return next(windows[:n] for n in lengths if windows[:n] * (len(windows) // n) == windows)
