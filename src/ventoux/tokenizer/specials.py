"""The tokens that no text makes: which they are, and what a GGUF file says of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ventoux.errors import TokenizerError

# Control tokens that end a text or an answer in every model that has them. Files name only one or two of a model's
# ends: SmolLM2's says <|im_end|>, but it was trained on texts that end in <|endoftext|>, and on code before
# which <reponame> stands. Source: llama.cpp's src/llama-vocab.cpp (end-of-generation tokens).
END_NAMES = frozenset(
    (
        *("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>"),
        *("<end_of_turn>", "<end_of_utterance>", "<EOT>", "_<EOT>", "<reponame>"),
    )
)


@dataclass(frozen=True)
class Specials:
    """Ids that text never turns into.

    `adds_bos` says whether this model's prompts begin with the BOS: SmolLM2's file names one and puts none.
    """

    control: Mapping[str, int]
    bos_id: int | None
    eos_id: int | None
    adds_bos: bool
    version: str | None

    @property
    def end_ids(self) -> frozenset[int]:
        named = {token_id for name, token_id in self.control.items() if name in END_NAMES}
        return frozenset(named if self.eos_id is None else named | {self.eos_id})


def gguf_specials(
    metadata: Mapping[str, Any],
    source: str | Path,
    *,
    control: Mapping[str, int],
    vocab_size: int,
    adds_bos: bool,
    version: str | None,
) -> Specials:
    """What a GGUF file says; `adds_bos` is llama.cpp's rule for files that do not say whether a BOS is put."""
    said = metadata.get("tokenizer.ggml.add_bos_token", adds_bos)
    if not isinstance(said, bool):
        raise TokenizerError(f"{source}: tokenizer.ggml.add_bos_token: expected true or false, found {said!r}")
    bos_id, eos_id = (_id(metadata, f"tokenizer.ggml.{name}_token_id", source, vocab_size) for name in ("bos", "eos"))
    return Specials(control, bos_id, eos_id, said, version)


def _id(metadata: Mapping[str, Any], key: str, source: str | Path, vocab_size: int) -> int | None:
    token_id = metadata.get(key)
    if token_id is not None and not (isinstance(token_id, int) and 0 <= token_id < vocab_size):
        raise TokenizerError(f"{source}: {key}: expected an id from 0 to {vocab_size - 1}, found {token_id!r}")
    return token_id
