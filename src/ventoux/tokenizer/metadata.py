"""A tokenizer file as the metadata of a GGUF file: pieces, scores or merges, types, special ids.

`from_gguf` reads it back with equal ids, and so does llama.cpp. It is also what tokenizer.json files are written from.
"""

import base64
import json
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ventoux.errors import TokenizerError, shown
from ventoux.tokenizer.bytelevel import CONTROL, PATTERNS, USER_DEFINED, WHOLE_WORDS, splitter
from ventoux.tokenizer.huggingface import BYTE_OF, BYTE_PIECE, load_json
from ventoux.tokenizer.specials import Specials
from ventoux.tokenizer.stream import reading
from ventoux.tokenizer.tekken import load_tekken
from ventoux.tokenizer.version import GGUF_KEY, mistral_version

if TYPE_CHECKING:
    import tokenizers

NORMAL, UNKNOWN, UNUSED, BYTE = 1, 2, 5, 6
CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}
# Words, numbers, spaces, marks and scripts that the ways to split text treat differently.
PROBE = (
    "Hello world's  I'LL don't 1234567 x12 3.14\t\ttabs\n\n  new\r\nlines   \n end.  ,,,!!! $a+b==c <|x|> [y] a_b/c\\d "
    "été Über straße ÅNGSTRÖM ПРИВЕТ мир γειά 你好世界 こんにちは 한국어 नमस्ते שלום مرحبا ١٢٣ ² Ⅷ ½ ﬁ e\u0301 🙂👩‍👩‍👧 "
    "camelCase HTTPServer \u00a0nbsp\u3000wide \u2028 — “quotes” …\u200b#tag @you https://a.b/c?d=e&f=%20"
)


def to_metadata(file: Path) -> dict[str, Any]:
    """tokenizer.model, tokenizer.json or tekken.json as `tokenizer.ggml.*` keys.

    Raises TokenizerError, which says why, when a GGUF file cannot say what the tokenizer does.
    """
    with reading(file):
        if file.suffix == ".json" and "tekken" in file.name:
            return _of_tekken(file)
        return _of_json(file) if file.suffix == ".json" else _of_sentencepiece(file)


def _keys(kind: str, pre: str, pieces: list[str], types: list[int], specials: Specials) -> dict[str, Any]:
    name, times = Counter(pieces).most_common(1)[0]
    if times > 1:
        raise TokenizerError(f"it has {times} tokens that are called {shown(name)}")
    found: dict[str, Any] = {"tokenizer.ggml.model": kind, "tokenizer.ggml.pre": pre}
    found |= {"tokenizer.ggml.tokens": pieces, "tokenizer.ggml.token_type": types}
    ids = {"bos": specials.bos_id, "eos": specials.eos_id, "unknown": next(iter(_at(types, UNKNOWN)), None)}
    found |= {f"tokenizer.ggml.{name}_token_id": i for name, i in ids.items() if i is not None}
    if specials.version is not None and specials.version != mistral_version(pieces):
        found[GGUF_KEY] = specials.version
    return found | {"tokenizer.ggml.add_bos_token": specials.adds_bos, "tokenizer.ggml.add_eos_token": False}


def _at(types: list[int], kind: int) -> list[int]:
    return [i for i, each in enumerate(types) if each == kind]


def _of_sentencepiece(file: Path) -> dict[str, Any]:
    from ventoux.tokenizer.sentencepiece import load_model

    specials = load_model(file).specials
    message: dict[int, list[Any]] = {}
    for field, value in _fields(file.read_bytes()):
        message.setdefault(field, []).append(value)
    pieces, scores, types = [], [], []
    for data in message[1]:
        piece = dict(_fields(data))
        pieces.append(piece[1].decode())
        scores.append(struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0)
        types.append(piece.get(3, NORMAL))
    trainer, normalizer = (dict(_fields(b"".join(message.get(field, [])))) for field in (2, 3))
    if trainer.get(3, 1) != 2:
        raise TokenizerError("it is no BPE, but one of sentencepiece's other models")
    if normalizer.get(2) or not normalizer.get(5, 1) or trainer.get(24, 0):
        raise TokenizerError("it normalizes text, or writes spaces, in a way of its own")
    found = _keys("llama", "default", pieces, types, specials)
    found["tokenizer.ggml.scores"] = scores
    found["tokenizer.ggml.add_space_prefix"] = bool(normalizer.get(3, 1))
    if normalizer.get(4, 1):
        found["tokenizer.ggml.remove_extra_whitespaces"] = True
    return found


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a protobuf message: an int, 4 or 8 bytes, or the bytes of what is inside."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        field, wire = divmod(varint(), 8)
        if wire == 0:
            yield field, varint()
            continue
        if wire not in (1, 2, 5):
            raise TokenizerError(f"field {field} has the unknown wire type {wire}")
        length = varint() if wire == 2 else {1: 8, 5: 4}[wire]
        yield field, data[at : at + length]
        at += length


def _of_tekken(file: Path) -> dict[str, Any]:
    specials = load_tekken(file).specials
    data = json.loads(file.read_bytes())
    size = data["config"]["default_vocab_size"] - len(specials.control)
    words = [base64.b64decode(entry["token_bytes"]) for entry in data["vocab"][:size]]
    ranks = {word: rank for rank, word in enumerate(words)}
    names = sorted(specials.control, key=specials.control.__getitem__)
    merges = []
    for word in words:
        if len(word) > 1:
            pairs = [(word[:cut], word[cut:]) for cut in range(1, len(word))]
            known = sorted((ranks[a], ranks[b]) for a, b in pairs if a in ranks and b in ranks)
            merges += [f"{_spelled(words[a])} {_spelled(words[b])}" for a, b in known]
    pieces = names + [_spelled(word) for word in words]
    types = [UNKNOWN if name == "<unk>" else CONTROL for name in names] + [NORMAL] * size
    pre = _pre(_tiktoken_split(data["config"]["pattern"]), whole_words=True)
    return _keys("gpt2", pre, pieces, types, specials) | {"tokenizer.ggml.merges": merges}


def _spelled(word: bytes) -> str:
    return "".join([CHARACTER_OF[byte] for byte in word])


def _tiktoken_split(pattern: str) -> list[str]:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    return [word for word, _ in Split(Regex(pattern), "isolated").pre_tokenize_str(PROBE)]


def _of_json(file: Path) -> dict[str, Any]:
    from tokenizers import Tokenizer

    tokenizer = load_json(file)
    text = file.read_text("utf-8")
    state, model = json.loads(text), Tokenizer.from_str(text)
    pieces = [model.id_to_token(i) for i in range(tokenizer.vocab_size)]
    added = model.get_added_tokens_decoder()
    unknown = state["model"].get("unk_token")
    bytelevel = any(part == "ByteLevel" for part in _types(state["decoder"]))
    types = []
    for i, piece in enumerate(pieces):
        kind = UNUSED if piece is None else NORMAL
        if i in added:
            kind = CONTROL if added[i].special else USER_DEFINED
        if not bytelevel and piece is not None and BYTE_PIECE.fullmatch(piece):
            kind = BYTE
        types.append(UNKNOWN if piece is not None and piece == unknown else kind)
    names = [f"[PAD{i}]" if piece is None else piece for i, piece in enumerate(pieces)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in state["model"]["merges"]]
    if not bytelevel:
        found = _keys("llama", "default", names, types, tokenizer.specials)
        found["tokenizer.ggml.scores"] = _scores(names, merges)
        # whether a space is put before a text: what "a" becomes tells
        cut = model.encode("a", add_special_tokens=False).tokens
        return found | {"tokenizer.ggml.add_space_prefix": cut[:1] != ["a"]}
    if state["normalizer"] is not None:
        raise TokenizerError("it normalizes text, which a GGUF file cannot say")
    pre = _pre(_split(model), whole_words=bool(state["model"].get("ignore_merges")))
    return _keys("gpt2", pre, names, types, tokenizer.specials) | {"tokenizer.ggml.merges": merges}


def _types(decoder: Any) -> list[str]:
    return [part["type"] for part in (decoder or {}).get("decoders", [decoder or {"type": ""}])]


def _scores(pieces: list[str], merges: list[str]) -> list[float]:
    """The earlier a merge, the higher the score of what it makes; what no merge makes comes last."""
    first: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        first.setdefault(merge.replace(" ", "", 1), rank)
    return [-float(first.get(piece, len(merges))) for piece in pieces]


def _split(model: "tokenizers.Tokenizer") -> list[str]:
    if model.pre_tokenizer is None:
        return [PROBE]
    return [PROBE[start:end] for _, (start, end) in model.pre_tokenizer.pre_tokenize_str(PROBE)]


def _pre(words: list[str], *, whole_words: bool) -> str:
    """The name of the way to cut text that cuts the probe into these words."""
    for name in PATTERNS:
        cut = [PROBE[start:end] for _, (start, end) in splitter(name).pre_tokenize_str(PROBE)]
        if cut == words and whole_words == (name in WHOLE_WORDS):
            return name
    raise TokenizerError(f"it cuts text into words as none of GGUF's names says ({', '.join(PATTERNS)})")
