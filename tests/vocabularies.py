"""Vocabularies to test with: Mistral's own files, the default model's, and both written in other forms."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

spec = importlib.util.find_spec("mistral_common")  # found, not imported: that takes seconds
assert spec is not None
assert spec.submodule_search_locations
MISTRAL = Path(spec.submodule_search_locations[0]) / "data"
FILES = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
    "v7": "mistral_instruct_tokenizer_241114.model.v7",
    "tekken": "tekken_240911.json",
}
KINDS = (*FILES, "gguf-llama", "gguf-smollm", "json-bytes", "json-pieces")


def sentencepiece_metadata(path: Path) -> dict[str, Any]:
    """A sentencepiece file as converters write it into a GGUF file."""
    model = SentencePieceProcessor(model_file=str(path))
    kinds = [(2, model.is_unknown), (3, model.is_control), (5, model.is_unused), (6, model.is_byte)]
    size = range(model.get_piece_size())
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in size],
        "tokenizer.ggml.scores": [model.get_score(i) for i in size],
        "tokenizer.ggml.token_type": [next((kind for kind, holds in kinds if holds(i)), 1) for i in size],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def byte_level_json(metadata: dict[str, Any], path: Path) -> Path:
    """The default model's vocabulary as its authors' tokenizer.json has it: digits one by one, then GPT-2's split."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pieces, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    model = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    model.decoder = decoders.ByteLevel()
    control = [piece for piece, kind in zip(pieces, types, strict=True) if kind == 3]
    model.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in control])
    model.save(str(path))
    path.with_name("tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}})
    )
    return path


def byte_fallback_json(metadata: dict[str, Any], path: Path) -> Path:
    """A sentencepiece vocabulary as transformers converts it: merges are all pairs of pieces that make a piece."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    pieces, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for piece in sorted(pieces, key=lambda piece: scores[vocab[piece]], reverse=True):
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [pair for pair in pairs if pair[0] in vocab and pair[1] in vocab]
        merges += sorted(known, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    model = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    model.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    model.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    control = ["<unk>", "<s>", "</s>"]
    model.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in control])
    model.save(str(path))
    return path
