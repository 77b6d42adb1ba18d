"""Taking a file's keys one by one, each with its type and range checked, until none is left over."""

import math
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from ventoux.config.model import LONGEST, ModelConfig
from ventoux.errors import ConfigError, shown

# No model comes near these; they keep every product of sizes far from overflow, and every loop over layers short.
LARGEST = {"layers": 1 << 10, "width": 1 << 20, "vocabulary": 1 << 24, "positions": LONGEST}


class Keys:
    """The keys of one file that nobody has asked for yet."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.left = dict(values)
        self.source = source

    def fail(self, key: str, reason: str) -> NoReturn:
        raise ConfigError(f"{self.source}: {key}: {reason}")

    def take(self, key: str) -> Any:
        """The value of a key, None when it is absent or null."""
        return self.left.pop(key, None)

    def size(self, key: str, kind: str, *, default: int | None = None) -> int:
        """A whole number from 1 to the LARGEST of its kind; an absent key is an error unless there is a default."""
        value = self.take(key)
        if value is None:
            if default is None:
                self.fail(key, "expected a whole number, found nothing")
            return default
        if type(value) is not int:  # bool is an int to isinstance
            self.fail(key, f"expected a whole number, found {shown(value)}")
        if not 1 <= value <= LARGEST[kind]:
            self.fail(key, f"expected 1 to {LARGEST[kind]}, found {shown(value)}")
        return value

    def number(self, key: str, *, default: float | None = None) -> float:
        """A positive, finite number."""
        value = self.take(key)
        if value is None:
            if default is None:
                self.fail(key, "expected a number, found nothing")
            return default
        if type(value) not in (int, float) or not 0 < value < 1e30 or not math.isfinite(value):
            self.fail(key, f"expected a positive number, found {shown(value)}")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or False; absent is False."""
        value = self.take(key)
        if value is not None and type(value) is not bool:
            self.fail(key, f"expected true or false, found {shown(value)}")
        return bool(value)

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One id or a list of them; absent or null is no id."""
        value = self.take(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if any(type(i) is not int or not 0 <= i < LARGEST["vocabulary"] for i in ids):
            self.fail(key, f"expected a token id or a list of them, found {shown(value)}")
        return tuple(dict.fromkeys(ids))

    def must_be(self, key: str, *allowed: object) -> None:
        """The key may be absent, null, or have one of these values: Ventoux does not do what others ask for."""
        value = self.take(key)
        if value is not None and not any(type(value) is type(a) and value == a for a in allowed):
            wanted = " or ".join(repr(a) for a in (*allowed, None))
            self.fail(key, f"{shown(value)} is not supported, only {wanted}")

    def finish(self, harmless: Collection[str]) -> None:
        """Every key must have been taken, or be known not to matter."""
        if extra := sorted(shown(key) for key in self.left if key not in harmless):
            raise ConfigError(
                f"{self.source}: unknown key(s) {', '.join(extra[:8])}: they may change the model, so it is not run"
                " without knowing them; remove them if they do not"
            )


def checked(config: ModelConfig, source: str) -> ModelConfig:
    """The config, if its numbers do not contradict each other."""
    if config.num_heads % config.num_kv_heads:
        raise ConfigError(
            f"{source}: {config.num_heads} query heads cannot share {config.num_kv_heads} key/value heads:"
            " the second number must divide the first"
        )
    if config.head_dim % 2:
        raise ConfigError(f"{source}: head_dim must be even for rotary positions, found {config.head_dim}")
    if config.rms_norm_eps >= 1:
        raise ConfigError(f"{source}: the norm's epsilon must be below 1, found {config.rms_norm_eps}")
    for token in (config.bos_id, *config.eos_ids):
        if token is not None and token >= config.vocab_size:
            raise ConfigError(f"{source}: token id {token} is not in a vocabulary of {config.vocab_size}")
    return config


def head_dim(keys: Keys, key: str, *, hidden_size: int, num_heads: int) -> int:
    """The size of a head as the file says, else the width divided by the heads."""
    if keys.left.get(key) is None and hidden_size % num_heads:
        keys.fail(key, f"it is missing, and {num_heads} heads do not divide a width of {hidden_size}")
    return keys.size(key, "width", default=hidden_size // num_heads or None)
