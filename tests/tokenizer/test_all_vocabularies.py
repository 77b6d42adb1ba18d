"""What holds for every tokenizer, whatever file it came from."""

from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ventoux.errors import TokenizerError
from ventoux.tokenizer import Tokenizer
from ventoux.tokenizer.huggingface import ByteLevelTokenizer
from ventoux.tokenizer.tekken import TekkenTokenizer

quick = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = ["<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "<|im_start|>", "<|im_end|>", "<unk>", "<0x0A>", "<pad>"]
texts = st.text() | st.lists(st.sampled_from([*NAMES, " ", "\n", "é", "👩‍👧", "a"])).map("".join)


@cache
def bytes_known(tokenizer: Tokenizer) -> set[int]:
    """The bytes that have a token. SmolLM2's vocabulary leaves some out, and with it llama.cpp and tokenizers do."""
    tokens = map(tokenizer.token_bytes, range(tokenizer.vocab_size))
    return {token[0] for token in tokens if len(token) == 1}


def round_trip(tokenizer: Tokenizer, text: str) -> None:
    if not isinstance(tokenizer, ByteLevelTokenizer | TekkenTokenizer):
        text = text.replace("▁", " ")  # sentencepiece's sign for a space comes back as one
    ids = tokenizer.encode(text)
    known = bytes_known(tokenizer)
    assert tokenizer.decode(ids) == bytes(byte for byte in text.encode() if byte in known).decode("utf-8", "replace")
    assert not set(ids) & set(tokenizer.control_tokens().values())


def test_only_the_default_model_leaves_bytes_out(any_tokenizer: Tokenizer) -> None:
    missing = set(range(256)) - bytes_known(any_tokenizer) - {0xC0, 0xC1, *range(0xF5, 0x100)}  # those are never UTF-8
    assert not missing or any_tokenizer.control_id("<|im_start|>")


@quick
@given(text=texts)
def test_text_comes_back_and_never_makes_a_control_token(any_tokenizer: Tokenizer, text: str) -> None:
    round_trip(any_tokenizer, text)


def test_corpus_comes_back(any_tokenizer: Tokenizer, corpus: list[str]) -> None:
    for text in corpus:
        round_trip(any_tokenizer, text)


@quick
@given(data=st.data())
def test_facts_22_streamed_pieces_are_the_full_decode_at_every_split(
    any_tokenizer: Tokenizer, data: st.DataObject
) -> None:
    # Low ids are control tokens and single bytes: most of what these lists spell is no valid UTF-8.
    token_id = st.integers(0, any_tokenizer.vocab_size - 1) | st.integers(0, min(1100, any_tokenizer.vocab_size - 1))
    ids = data.draw(st.lists(token_id, max_size=24))
    whole = any_tokenizer.stream()
    pushed = [whole.push(each) for each in ids]
    full = "".join(pushed) + whole.finish()
    assert full == any_tokenizer.decode(ids)
    for split in range(len(ids) + 1):
        stream = any_tokenizer.stream(after=ids[:split])
        rest = "".join(stream.push(each) for each in ids[split:]) + stream.finish()
        assert full == "".join(pushed[:split]) + rest


@quick
@given(text=st.text(alphabet="aé€👩\u200d👧 ▁", min_size=1))
def test_facts_22_split_emoji_is_held_back(any_tokenizer: Tokenizer, text: str) -> None:
    stream, shown = any_tokenizer.stream(), ""
    for token_id in any_tokenizer.encode(text):
        shown += stream.push(token_id)
        assert "\ufffd" not in shown
    assert shown == any_tokenizer.decode(any_tokenizer.encode(text))
    assert stream.finish() == ""


def test_facts_22_spaces_are_kept_between_pieces(any_tokenizer: Tokenizer) -> None:
    before, after = any_tokenizer.encode("Hello"), any_tokenizer.encode("Hello big  world")[len("H") :]
    stream = any_tokenizer.stream(after=before)
    assert "".join(map(stream.push, after)) == " big  world"


def test_bytes_of_tokens_are_the_text(any_tokenizer: Tokenizer, corpus: list[str]) -> None:
    for text in corpus:
        ids = any_tokenizer.encode(text)
        joined = b"".join(map(any_tokenizer.token_bytes, ids)).decode()
        assert joined.endswith(any_tokenizer.decode(ids))
        assert joined.removesuffix(any_tokenizer.decode(ids)) in ("", " ")


def test_control_tokens_are_left_out(any_tokenizer: Tokenizer) -> None:
    control = any_tokenizer.control_tokens()
    for name, token_id in control.items():
        assert any_tokenizer.control_id(name) == token_id
        assert any_tokenizer.token_bytes(token_id) == b""
    assert any_tokenizer.control_id("no such token") is None
    ids = any_tokenizer.encode("one two")
    assert any_tokenizer.decode([*control.values(), *ids, *control.values()]) == "one two"


@pytest.mark.parametrize("beyond", [-1, 0, 5])
def test_ids_that_name_no_token_are_refused(any_tokenizer: Tokenizer, beyond: int) -> None:
    token_id = -1 if beyond < 0 else any_tokenizer.vocab_size + beyond
    for use in (lambda: any_tokenizer.decode([token_id]), lambda: any_tokenizer.token_bytes(token_id)):
        with pytest.raises(
            TokenizerError, match=rf"expected an id from 0 to {any_tokenizer.vocab_size - 1}, found {token_id}"
        ):
            use()


def test_half_a_surrogate_pair_is_refused(any_tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"half a surrogate pair at character 2"):
        any_tokenizer.encode("ab\ud83d")


def test_bos_and_eos_stand_at_the_ends(any_tokenizer: Tokenizer) -> None:
    ids = any_tokenizer.encode("hello", bos=True, eos=True)
    assert ids[-1] == any_tokenizer.eos_id
    assert ids.count(any_tokenizer.bos_id) == (0 if any_tokenizer.control_id("<|im_start|>") else 1)
