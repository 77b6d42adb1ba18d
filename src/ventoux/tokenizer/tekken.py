"""tekken.json: Mistral's byte-level BPE since Nemo, control tokens first and then the ranks of tiktoken."""

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ventoux.errors import TokenizerError
from ventoux.tokenizer.specials import Specials
from ventoux.tokenizer.stream import PieceTokenizer, reading

if TYPE_CHECKING:
    from tiktoken import Encoding

# Files up to v7 may leave their control tokens out; these are the first of them, in order of id (mistral-common's
# Tekkenizer.DEPRECATED_SPECIAL_TOKENS). The rest of the reserved ids are called <SPECIAL_n>.
_EARLY_CONTROL = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"),
    *("[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)
_MAX_CONTROL = 1 << 16  # files in use reserve 1000


class TekkenTokenizer(PieceTokenizer):
    """Ids below `offset` are control tokens, the rest is tiktoken's rank plus `offset`."""

    def __init__(self, encoding: "Encoding", specials: Specials) -> None:
        self._offset = len(specials.control)
        super().__init__(self._offset + encoding.n_vocab, specials)
        self._encoding = encoding

    def _cut(self, text: str) -> list[int]:
        return [rank + self._offset for rank in self._encoding.encode_ordinary(text)]

    def _surface(self, token_id: int, first: bool) -> bytes:
        return self._encoding.decode_single_token_bytes(token_id - self._offset)


def load_tekken(path: Path) -> TekkenTokenizer:
    """A tekken.json file; its `config.version` is the tokenizer's version."""
    from tiktoken import Encoding

    with reading(path):
        data = json.loads(path.read_bytes())
        config = data["config"]
        names = _control_names(data, count=config["default_num_special_tokens"], path=path)
        size = config["default_vocab_size"] - len(names)
        vocab, version = data["vocab"], config["version"]
        if not isinstance(version, str):
            raise TokenizerError(f"{path}: expected config.version to be a string, found {version!r}")
        if not 256 <= size <= len(vocab):
            raise TokenizerError(f"{path}: expected 256 to {len(vocab)} tokens beside the control tokens, found {size}")
        ranks = {base64.b64decode(entry["token_bytes"]): rank for rank, entry in enumerate(vocab[:size])}
        if len(ranks) != size or any(ranks.get(bytes([i])) != i for i in range(256)):
            raise TokenizerError(f"{path}: expected the 256 bytes first and no token twice; fetch the file again")
        encoding = Encoding("tekken", pat_str=config["pattern"], mergeable_ranks=ranks, special_tokens={})
        control = {name: i for i, name in enumerate(names)}
        specials = Specials(control, control.get("<s>"), control.get("</s>"), True, version)
        return TekkenTokenizer(encoding, specials)


def _control_names(data: dict[str, Any], *, count: int, path: Path) -> list[str]:
    listed = data.get("special_tokens")
    names = list(_EARLY_CONTROL)
    if listed is not None:
        names = [token["token_str"] for token in sorted(listed, key=lambda token: token["rank"])]
    if not len(set(names)) == len(names) <= count <= _MAX_CONTROL:
        raise TokenizerError(
            f"{path}: expected default_num_special_tokens to be from {len(names)} to {_MAX_CONTROL}, and each control"
            f" token once, found {count} for {len(set(names))} names"
        )
    return names + [f"<SPECIAL_{i}>" for i in range(len(names), count)]
