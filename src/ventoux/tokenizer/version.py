"""Which of Mistral's tokenizers a vocabulary is, told by its pieces."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

# SHA-256 over the pieces of tokenizer.model.v1, joined with NUL. Llama 2 has 32000 pieces too, but not these.
_V1 = "10dfbba944925c7eabd5534c13217433c6d73e61b8a9ba3ba736f9541b4a78c7"

# Where files that we write say it, when the pieces would tell something else: tekken's v3 has the control tokens of v7.
CONFIG_KEY = "mistral_version"  # of tokenizer_config.json
GGUF_KEY = "tokenizer.mistral_version"


def stated_version(values: Mapping[str, Any], key: str, pieces: Sequence[str]) -> str | None:
    """The version that a file states under this key, else the one that the pieces tell."""
    stated = values.get(key)
    return stated if isinstance(stated, str) else mistral_version(pieces)


def mistral_version(pieces: Sequence[str]) -> str | None:
    """ "v1", "v2", "v3" or "v7" by the pieces in order of id; None for other makers and for versions after v7.

    v2 brought [INST] at id 3, v3 [PREFIX] and [SUFFIX], v7 [SYSTEM_PROMPT], v11 [ARGS]. v1 has no control tokens of
    its own and is known by its fingerprint.
    """
    if list(pieces[3:5]) != ["[INST]", "[/INST]"]:
        if len(pieces) != 32000:
            return None
        fingerprint = hashlib.sha256("\0".join(pieces).encode("utf-8", "surrogatepass")).hexdigest()
        return "v1" if fingerprint == _V1 else None
    names = set(pieces)
    if "[ARGS]" in names:
        return None
    if "[SYSTEM_PROMPT]" in names:
        return "v7"
    return "v3" if "[PREFIX]" in names else "v2"
