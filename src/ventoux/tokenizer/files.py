"""Tokenizer files out of the metadata of a GGUF file: tokenizer.model, tokenizer.json and tokenizer_config.json."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ventoux.tokenizer import bytelevel, sentencepiece
from ventoux.tokenizer.bytelevel import CONTROL, USER_DEFINED
from ventoux.tokenizer.stream import reading

if TYPE_CHECKING:
    import tokenizers

UNKNOWN, UNUSED = 2, 5


def to_model(metadata: Mapping[str, Any]) -> bytes | None:
    """tokenizer.model of a sentencepiece vocabulary, None for others, and for one that puts no BOS before a text,
    which such a file cannot say."""
    if metadata["tokenizer.ggml.model"] != "llama" or metadata.get("tokenizer.ggml.add_bos_token") is False:
        return None
    with reading("the GGUF file's vocabulary"):
        return sentencepiece.model_file(metadata)


def to_json(metadata: Mapping[str, Any], *, source: str) -> str:
    """tokenizer.json, which transformers reads with the same ids. What comes between two control tokens is a text of
    its own, with the space before it that a text gets: so templates can write what mistral-common writes.

    Raises TokenizerError when the vocabulary is damaged.
    """
    from tokenizers import AddedToken, decoders

    with reading(source):
        if metadata["tokenizer.ggml.model"] == "gpt2":
            model = bytelevel.model_of(metadata, source, control=True)
            model.decoder = decoders.ByteLevel()
        else:
            model = _byte_fallback(metadata)
        pieces, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
        added = [(i, piece, kind) for i, (piece, kind) in enumerate(zip(pieces, types, strict=True))]
        tokens = [
            AddedToken(piece, special=kind != USER_DEFINED, normalized=False)
            for _, piece, kind in added
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ]
        model.add_tokens(tokens)
        _put_bos(model, metadata)
        text: str = model.to_str(pretty=True)
        return text


def to_config(
    metadata: Mapping[str, Any],
    *,
    bos_id: int | None,
    eos_id: int | None,
    adds_bos: bool,
    template: str | None,
    longest: int,
) -> dict[str, Any]:
    """tokenizer_config.json: names of special tokens, the chat template, the longest text in tokens."""
    pieces = metadata["tokenizer.ggml.tokens"]
    unknown, padding = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("unknown", "padding"))
    ids = {"bos": bos_id, "eos": eos_id, "unk": unknown, "pad": padding}
    config: dict[str, Any] = {"add_bos_token": adds_bos, "add_eos_token": False}
    config |= {f"{name}_token": pieces[i] for name, i in ids.items() if i is not None}
    config |= {"clean_up_tokenization_spaces": False, "model_max_length": longest}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # the one that takes tokenizer.json as it is, in any version
    return config | ({} if template is None else {"chat_template": template})


def _byte_fallback(metadata: Mapping[str, Any]) -> "tokenizers.Tokenizer":
    """sentencepiece's BPE for the `tokenizers` library: a merge for each pair of pieces that make a piece."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    pieces, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    types = metadata["tokenizer.ggml.token_type"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    normal = {piece: i for i, piece in enumerate(pieces) if types[i] == 1}
    merges = []
    for piece in sorted(normal, key=lambda piece: (-scores[normal[piece]], normal[piece])):
        cuts = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [(left, right) for left, right in cuts if left in normal and right in normal]
        merges += sorted(known, key=lambda pair: (normal[pair[0]], normal[pair[1]]))
    unknown = next((piece for i, piece in enumerate(pieces) if types[i] == UNKNOWN), None)
    model = Tokenizer(models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaces: list[Any] = [normalizers.Replace(" ", "▁")]
    texts: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend("▁"))
        texts.append(decoders.Strip(" ", 1, 0))
    model.normalizer = normalizers.Sequence(spaces)
    model.decoder = decoders.Sequence(texts)
    return model


def _put_bos(model: "tokenizers.Tokenizer", metadata: Mapping[str, Any]) -> None:
    from tokenizers.processors import TemplateProcessing

    bos = metadata.get("tokenizer.ggml.bos_token_id")
    if metadata.get("tokenizer.ggml.add_bos_token") and bos is not None:
        name = metadata["tokenizer.ggml.tokens"][bos]
        model.post_processor = TemplateProcessing(f"{name} $A", f"{name} $A {name} $B", [(name, bos)])
