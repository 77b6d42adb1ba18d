"""Ids equal those of the libraries that define them: mistral-common, llama.cpp, transformers, sentencepiece."""

import base64
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_server import LlamaCpp
from vocabularies import FILES, MISTRAL, byte_fallback_json, byte_level_json, sentencepiece_metadata

from ventoux import tokenizer
from ventoux.checkpoint import pull
from ventoux.tokenizer import Tokenizer
from ventoux.tokenizer.huggingface import BYTE_OF

Kinds = Callable[[str], Tokenizer]
quick = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=FILES)
def mistral_pair(request: pytest.FixtureRequest, of_kind: Kinds) -> tuple[Tokenizer, Any]:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    theirs = MistralTokenizer.from_file(MISTRAL / FILES[request.param])
    return of_kind(request.param), theirs.instruct_tokenizer.tokenizer


def test_mistral_common_on_the_corpus(mistral_pair: tuple[Tokenizer, Any], corpus: list[str]) -> None:
    ours, theirs = mistral_pair
    assert (ours.vocab_size, ours.bos_id, ours.eos_id) == (theirs.n_words, theirs.bos_id, theirs.eos_id)
    assert ours.version == theirs.version.value
    assert set(ours.control_tokens().values()) == theirs.special_ids
    for text in corpus:
        assert ours.encode(text, bos=True, eos=True) == theirs.encode(text, bos=True, eos=True)


@quick
@given(text=st.text())
def test_mistral_common_on_any_text(mistral_pair: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = mistral_pair
    assert ours.encode(text) == theirs.encode(text, bos=False, eos=False)


@quick
@given(data=st.data())
def test_mistral_common_decodes_the_same(mistral_pair: tuple[Tokenizer, Any], data: st.DataObject) -> None:
    ours, theirs = mistral_pair
    token_id = st.integers(0, ours.vocab_size - 1) | st.integers(0, 1200)
    ids = data.draw(st.lists(token_id, max_size=20))
    assert ours.decode(ids) == theirs.decode(ids)


def test_sentencepiece_in_a_gguf_file_is_the_same_tokenizer(of_kind: Kinds, corpus: list[str]) -> None:
    file, container = of_kind("v1"), of_kind("gguf-llama")
    assert container.version == "v1"
    assert container.control_tokens() == file.control_tokens()
    for text in corpus:
        assert container.encode(text, bos=True) == file.encode(text, bos=True)


@pytest.mark.parametrize("version", ["v2", "v3", "v7"])
def test_versions_are_told_by_the_pieces_in_a_gguf_file(version: str) -> None:
    found = tokenizer.from_gguf(sentencepiece_metadata(MISTRAL / FILES[version]), source="x")
    assert found.version == version


def test_a_gguf_file_may_put_no_space_before_the_text() -> None:
    metadata = sentencepiece_metadata(MISTRAL / FILES["v1"])
    ours = tokenizer.from_gguf(metadata | {"tokenizer.ggml.add_space_prefix": False}, source="x")
    assert [ours.token_bytes(i) for i in ours.encode("Hello world")] == [b"Hello", b" world"]
    for text in (" a", "  a", "a", ""):
        assert ours.decode(ours.encode(text)) == text


@pytest.fixture(scope="module")
def llama_cpp() -> LlamaCpp:
    return LlamaCpp(pull.resolve())


def test_llama_cpp_on_the_corpus(llama_cpp: LlamaCpp, of_kind: Kinds, corpus: list[str]) -> None:
    ours = of_kind("gguf-smollm")
    for text in corpus:
        assert ours.encode(text) == llama_cpp.encode(text)


@quick
@given(text=st.text())
def test_llama_cpp_on_any_text(llama_cpp: LlamaCpp, of_kind: Kinds, text: str) -> None:
    assert of_kind("gguf-smollm").encode(text) == llama_cpp.encode(text)


def test_llama_cpp_ends_texts_at_the_same_tokens(llama_cpp: LlamaCpp, of_kind: Kinds) -> None:
    ours = of_kind("gguf-smollm")
    control = ours.control_tokens()
    assert {name for name, i in control.items() if i in ours.end_ids} == {
        name for name, i in control.items() if llama_cpp.ends_with(i)
    }
    assert ours.end_ids > {ours.eos_id}


@pytest.mark.slow
@pytest.mark.parametrize("pre", ["default", "gpt-2", "llama-bpe"])
def test_llama_cpp_with_other_pre_tokenizers(
    pre: str, default_metadata: dict[str, Any], corpus: list[str], tmp_path: Path
) -> None:
    metadata = default_metadata | {"tokenizer.ggml.pre": pre}
    path = tmp_path / "model.gguf"
    write_model_of_noise(path, metadata)
    ours, theirs = tokenizer.load(path), LlamaCpp(path)
    for text in corpus:
        assert ours.encode(text) == theirs.encode(text), text


def write_model_of_noise(path: Path, metadata: dict[str, Any]) -> None:
    """The smallest model that llama.cpp will load with this vocabulary: one layer, 32 wide."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(metadata["tokenizer.ggml.pre"])
    writer.add_token_list(metadata["tokenizer.ggml.tokens"])
    writer.add_token_types(metadata["tokenizer.ggml.token_type"])
    writer.add_token_merges(metadata["tokenizer.ggml.merges"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    square, line = np.zeros((32, 32), np.float32), np.ones(32, np.float32)
    writer.add_tensor("token_embd.weight", np.zeros((len(metadata["tokenizer.ggml.tokens"]), 32), np.float32))
    writer.add_tensor("output_norm.weight", line)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", square)
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", line)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module", params=["json-bytes", "json-pieces"])
def transformers_pair(
    request: pytest.FixtureRequest, of_kind: Kinds, default_metadata: dict[str, Any], tmp_path_factory: Any
) -> tuple[Tokenizer, Any]:
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("oracle") / "tokenizer.json"
    if request.param == "json-bytes":
        byte_level_json(default_metadata, path)
    else:
        byte_fallback_json(sentencepiece_metadata(MISTRAL / FILES["v1"]), path)
    return of_kind(request.param), PreTrainedTokenizerFast(tokenizer_file=str(path))


@quick
@given(text=st.text())
def test_transformers_on_any_text(transformers_pair: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = transformers_pair
    ids = ours.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)


def test_transformers_on_the_corpus(transformers_pair: tuple[Tokenizer, Any], corpus: list[str]) -> None:
    ours, theirs = transformers_pair
    for text in corpus:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False, split_special_tokens=True)


def test_one_vocabulary_in_two_files_gives_the_same_ids(of_kind: Kinds, corpus: list[str]) -> None:
    for one, other in (("gguf-smollm", "json-bytes"), ("v1", "json-pieces")):
        assert of_kind(one).version == of_kind(other).version
        for text in corpus:
            if text:  # an empty text has a dummy space in tokenizer.json and none in sentencepiece
                assert of_kind(one).encode(text) == of_kind(other).encode(text)


def test_tekken_in_a_gguf_file_is_the_same_tokenizer(corpus: list[str]) -> None:
    """The first 8,000 tokens of tekken.json, whose merges a converter finds by merging each token without itself."""
    import tiktoken

    data = json.loads((MISTRAL / FILES["tekken"]).read_bytes())
    ranks = {base64.b64decode(entry["token_bytes"]): rank for rank, entry in enumerate(data["vocab"][:8000])}
    letter = {byte: character for character, byte in BYTE_OF.items()}
    spelled = {token: "".join(letter[byte] for byte in token) for token in ranks}
    merges = [" ".join(spelled[half] for half in halves(token, ranks)) for token in ranks if len(token) > 1]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "tekken",
        "tokenizer.ggml.tokens": [*spelled.values(), "[INST]"],
        "tokenizer.ggml.token_type": [1] * 8000 + [3],
        "tokenizer.ggml.merges": merges,
    }
    ours = tokenizer.from_gguf(metadata, source="x")
    pattern = data["config"]["pattern"]
    theirs = tiktoken.Encoding("tekken", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    for text in corpus:
        assert ours.encode(text) == theirs.encode_ordinary(text)


def halves(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens that are merged last when `token` is made."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        first = pairs.index(min(pairs))
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts
