"""Which file is read, and what is said of files that are damaged, hostile or not there."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vocabularies import FILES, MISTRAL, byte_fallback_json, byte_level_json, sentencepiece_metadata

from ventoux import tokenizer
from ventoux.errors import TokenizerError, VentouxError

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_a_folder_with_several_tokenizers_follows_the_rule(tmp_path: Path, default_metadata: dict[str, Any]) -> None:
    (tmp_path / "a.gguf").touch()
    assert tokenizer.choose(tmp_path) is None
    with pytest.raises(TokenizerError, match=r"expected a tokenizer .* found none; .* name that file"):
        tokenizer.load(tmp_path)
    converted = byte_fallback_json(sentencepiece_metadata(MISTRAL / FILES["v1"]), tmp_path / "tokenizer.json")
    assert tokenizer.choose(tmp_path) == converted
    model = Path(shutil.copy(MISTRAL / FILES["v1"], tmp_path / "tokenizer.model"))
    assert tokenizer.choose(tmp_path) == model
    with_chatml = json.loads(converted.read_text())
    with_chatml["added_tokens"] += [{**with_chatml["added_tokens"][0], "id": 32000, "content": "<|im_end|>"}]
    converted.write_text(json.dumps(with_chatml))
    assert tokenizer.choose(tmp_path) == converted
    assert tokenizer.load(tmp_path).control_id("<|im_end|>") == 32000
    for name in (FILES["v2"], "tokenizer.model.v10", FILES["v3"]):
        shutil.copy(MISTRAL / FILES["v3"], tmp_path / name)
    assert tokenizer.choose(tmp_path) == tmp_path / "tokenizer.model.v10"
    (tmp_path / "tekken.json").touch()
    assert tokenizer.choose(tmp_path) == tmp_path / "tekken.json"


def test_the_name_of_a_file_tells_its_version_before_the_pieces_do(tmp_path: Path) -> None:
    for name, version in (("tokenizer.model.v7m1", "v7"), ("tokenizer.model", "v3")):
        assert tokenizer.load(shutil.copy(MISTRAL / FILES["v3"], tmp_path / name)).version == version


def test_begin_and_end_come_from_the_file_beside(tmp_path: Path, default_metadata: dict[str, Any]) -> None:
    path = byte_level_json(default_metadata, tmp_path / "tokenizer.json")
    config = tmp_path / "tokenizer_config.json"
    ours = tokenizer.load(path)
    assert (ours.bos_id, ours.eos_id, ours.encode("a", bos=True)) == (1, 2, ours.encode("a"))
    config.write_text(json.dumps({"bos_token": "<|im_start|>", "add_bos_token": True}))
    ours = tokenizer.load(path)
    assert ours.encode("a", bos=True) == [1, *ours.encode("a")]
    with pytest.raises(TokenizerError, match="no EOS token"):
        ours.encode("a", eos=True)
    for damaged in ("[]", "{", "[" * 100000):
        config.write_text(damaged)
        with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: expected"):
            tokenizer.load(path)


def test_added_tokens_are_text_and_come_back(tmp_path: Path, default_metadata: dict[str, Any]) -> None:
    """FACTS 22 names them too: what stands behind an added token is unchanged."""
    types = list(default_metadata["tokenizer.ggml.token_type"])
    pieces = list(default_metadata["tokenizer.ggml.tokens"])
    pieces[5000], types[5000] = "«added é»", 4
    changed = {"tokenizer.ggml.tokens": pieces, "tokenizer.ggml.token_type": types, "tokenizer.ggml.merges": []}
    ours = tokenizer.from_gguf(default_metadata | changed, source="x")
    ids = ours.encode("a «added é» b")
    assert 5000 in ids
    assert ours.token_bytes(5000) == "«added é»".encode()
    stream = ours.stream()
    assert "".join(map(stream.push, ids)) == ours.decode(ids) == "a «added é» b"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"tokenizer.ggml.model": "bert"}, "expected 'llama' or 'gpt2', found 'bert'"),
        ({"tokenizer.ggml.model": None}, "found no tokenizer"),
        ({"tokenizer.ggml.pre": "deepseek-coder"}, r"tokenizer\.ggml\.pre: expected one of .* found 'deepseek-coder'"),
        ({"tokenizer.ggml.pre": ["smollm"]}, r"expected one of .* found \['smollm'\]"),
        ({"tokenizer.ggml.tokens": None}, "damaged"),
        ({"tokenizer.ggml.tokens": ["a", "b"]}, "damaged"),
        ({"tokenizer.ggml.tokens": ["\udcff"], "tokenizer.ggml.token_type": [1]}, "damaged"),
        ({"tokenizer.ggml.merges": ["no such"]}, "damaged"),
        ({"tokenizer.ggml.merges": [5]}, "damaged"),
        ({"tokenizer.ggml.bos_token_id": 1 << 20}, "bos_token_id: expected an id from 0 to 49151, found 1048576"),
        ({"tokenizer.ggml.eos_token_id": "2"}, "eos_token_id: expected an id from 0 to 49151, found '2'"),
    ],
)
def test_gguf_metadata_that_is_wrong(changed: dict[str, Any], words: str, default_metadata: dict[str, Any]) -> None:
    with pytest.raises(TokenizerError, match=f"some file: .*{words}"):
        tokenizer.from_gguf(default_metadata | changed, source="some file")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"tokenizer.ggml.scores": [1.0]}, "damaged"),
        ({"tokenizer.ggml.scores": None}, "damaged"),
        ({"tokenizer.ggml.token_type": [1] * 32000}, "damaged"),  # no <unk>
        ({"tokenizer.ggml.tokens": ["a"] * 32000}, "damaged"),  # every piece the same
        ({"tokenizer.ggml.bos_token_id": -5}, "bos_token_id: expected an id"),
    ],
)
def test_gguf_sentencepiece_that_is_wrong(changed: dict[str, Any], words: str) -> None:
    metadata = sentencepiece_metadata(MISTRAL / FILES["v1"])
    with pytest.raises(TokenizerError, match=f"some file: .*{words}"):
        tokenizer.from_gguf(metadata | changed, source="some file")


def small_tekken() -> dict[str, Any]:
    import base64

    tokens = [bytes([byte]) for byte in range(256)] + [b"ab", b"abc"]
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for rank, token in enumerate(tokens)
    ]
    config = {"pattern": r"\w+|\W+", "default_vocab_size": 288, "default_num_special_tokens": 30, "version": "v3"}
    return {"config": config, "vocab": vocab}


def test_a_small_tekken_file_reads(tmp_path: Path) -> None:
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(small_tekken()))
    ours = tokenizer.load(path)
    assert (ours.vocab_size, ours.encode("abc"), ours.control_id("<SPECIAL_29>")) == (288, [30 + 257], 29)


def with_value(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    *parents, last = path.split(".")

    def change(data: Any) -> None:
        for key in parents:
            data = data[int(key) if isinstance(data, list) else key]
        data[int(last) if isinstance(data, list) else last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        with_value("config", None),
        with_value("config.pattern", "("),
        with_value("config.pattern", 5),
        with_value("config.version", 3),
        with_value("config.default_vocab_size", 10**12),
        with_value("config.default_vocab_size", -1),
        with_value("config.default_num_special_tokens", 10**12),
        with_value("config.default_num_special_tokens", 5),
        with_value("vocab", []),
        with_value("vocab.3.token_bytes", "AA=="),
        with_value("vocab.3.token_bytes", "?"),
        with_value("vocab.257.token_bytes", "YWI="),
        with_value("special_tokens", [{"rank": 0, "token_str": "<s>"}] * 2),
        with_value("special_tokens", [{"rank": 0}]),
    ],
)
def test_tekken_files_that_are_wrong(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = small_tekken()
    change(data)
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(data))
    with pytest.raises(TokenizerError, match=r"tekken\.json: expected"):
        tokenizer.load(path)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", "[" * 100000, '{"model": {"type": "BPE", "vocab": {}, "merges": ["a b"]}}', "\xff"]
)
@pytest.mark.parametrize("name", ["tokenizer.json", "tekken.json", "tokenizer.model", "a.gguf"])
def test_files_that_are_something_else(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, "latin-1")
    with pytest.raises(VentouxError, match=f"{path}: "):
        tokenizer.load(path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="found none; check the path"):
        tokenizer.load(tmp_path / "tokenizer.model")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(TokenizerError, match=r"expected tokenizer\.model, .* found notes\.txt"):
        tokenizer.load(tmp_path / "notes.txt")


def test_other_kinds_of_tokenizer_json_are_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    path = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(path))
    with pytest.raises(TokenizerError, match="expected a tokenizer of type BPE, found WordLevel"):
        tokenizer.load(path)
    Tokenizer(models.BPE({"a": 0}, [])).save(str(path))
    with pytest.raises(TokenizerError, match=r"expected a decoder .* found none"):
        tokenizer.load(path)


@quick
@given(data=st.data())
def test_a_cut_or_mutated_sentencepiece_file_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    whole = (MISTRAL / FILES["v1"]).read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    mutated = bytearray(whole[:cut])
    for _ in range(data.draw(st.integers(0, 4)) if mutated else 0):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "tokenizer.model"
    path.write_bytes(mutated)
    with suppress(TokenizerError):  # any other error, or a crash, fails the test
        ours = tokenizer.load(path)
        assert ours.decode(ours.encode("")) == ""


def test_a_vocabulary_of_four_billion_ids_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"type": "BPE", "vocab": {"a": 0xFFFFFFFF}, "merges": []}}))
    with pytest.raises(TokenizerError, match=r"expected ids below 4194304, found 4294967295"):
        tokenizer.load(path)


def test_a_text_that_a_vocabulary_cannot_write(tmp_path: Path) -> None:
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": "<gone>"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": model, "decoder": {"type": "ByteFallback"}}))
    with pytest.raises(TokenizerError, match=r"cannot write the text as ids: .*<gone>"):
        tokenizer.load(path).encode("b")
