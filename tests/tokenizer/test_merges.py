"""Merges in Python give the library's ids."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ventoux import gguf
from ventoux.tokenizer import bytelevel, merges
from ventoux.tokenizer.huggingface import BYTE_OF
from ventoux.tokenizer.metadata import PROBE

NEAR = st.text(st.sampled_from("aabbcd  \n1'éß你🙂\u0301<|im_start|>"), max_size=60)


@pytest.fixture(scope="module")
def both(default_model):
    """The default model's vocabulary: what reads it in Python, and the library's model."""
    metadata = gguf.read(default_model).metadata
    return bytelevel._encoder(metadata, "x").__self__, bytelevel.model_of(metadata, "x")


@settings(max_examples=300, deadline=None)
@given(text=st.one_of(st.text(max_size=80), NEAR))
@example(text=PROBE)
@example(text="a" * merges.LONG)
@example(text="")
def test_ids_are_the_librarys(both, text):
    ours, library = both
    text = text.encode("utf-8", "replace").decode()
    found = ours._cut(text)
    if found is None:  # this vocabulary lacks some control characters, which the library drops
        assert len(text) > merges.LONG / 4 or any(ord(character) < 32 or ord(character) > 126 for character in text)
    else:
        assert found == library.encode(text, add_special_tokens=False).ids


@settings(max_examples=300, deadline=None)
@given(data=st.data(), pre=st.sampled_from(["gpt-2", "llama-bpe"]))
def test_any_vocabulary_of_sound_merges(data, pre):
    """Merges in any order, twice over, of which some make pieces that others have made before."""
    pieces = sorted(BYTE_OF)
    made = list("abc")
    rules = []
    for _ in range(data.draw(st.integers(1, 12))):
        left, right = data.draw(st.sampled_from(made)), data.draw(st.sampled_from(made))
        rules.append(f"{left} {right}")
        made.append(left + right)
    rules = data.draw(st.permutations(rules))
    pieces += dict.fromkeys(made[3:])
    metadata = {
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": [1] * len(pieces),
        "tokenizer.ggml.merges": rules,
    }
    text = data.draw(st.text(st.sampled_from("abc"), max_size=30))
    encode = bytelevel._encoder(metadata, "x")
    assert isinstance(encode.__self__, merges.Merges)
    assert encode(text) == bytelevel.model_of(metadata, "x").encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", ["word " * (merges.ENOUGH // 5 + 1), "a" * (merges.LONG + 1)])
def test_long_texts_are_the_librarys(default_model, text):
    metadata = gguf.read(default_model).metadata
    encode = bytelevel._encoder(metadata, "x")
    encode("short")
    assert encode.__self__._library is None
    assert encode(text) == bytelevel.model_of(metadata, "x").encode(text, add_special_tokens=False).ids
    assert encode.__self__._library is not None


@pytest.mark.parametrize("rules", [[], ["ab"], ["a  b"], ["a b", "ab", "a b a"], ["b a"], [5], ["a b", None]])
def test_what_is_not_sound_is_left_to_the_library(rules):
    assert merges.ranks_of({"a": 0, "b": 1, "ab": 2}, rules) is None
    assert merges.ranks_of({"a": 0, "b": 1, "ab": 2}, ["a b"]) is not None
    assert merges.ranks_of({"a": 0, "b": 1, "ab": 2, "\udcff": 3}, ["a b"]) is None


ANY_ORDER = st.lists(st.sampled_from(["a b", "b a", "ab a", "a ba", "b ab", "ab b"]), min_size=1, max_size=5)


@given(
    rules=ANY_ORDER, before=st.lists(st.sampled_from(["x", "ab", "ba"])), behind=st.sampled_from([[], ["aba"], ["y"]])
)
@example(rules=["a b", "b a", "ab a"], before=["x"], behind=[])
def test_a_pairs_rank_is_that_of_its_last_equal(rules, before, behind):
    """Where the vocabulary is in the merges' order, which makes their table unnecessary, and where it is not."""
    pieces = ["a", "b", *before, *(rule.replace(" ", "") for rule in rules), *behind]
    vocab = dict(zip(pieces, range(len(pieces)), strict=True))
    rank = merges.ranks_of(vocab, rules)
    for pair in ["a b", "b a", "ab a", "a ba", "b ab", "ab b", "a a", "aba b"]:
        wanted = len(rules) - 1 - rules[::-1].index(pair) if pair in rules else merges.NEVER
        assert rank(*pair.split()) == wanted


def test_the_default_models_merges_need_no_table(default_model):
    metadata = gguf.read(default_model).metadata
    vocab, rules = bytelevel._vocab(metadata, control=False), metadata["tokenizer.ggml.merges"]
    assert merges.first_made(vocab, rules) == 252
    assert merges.first_made(vocab, [*rules[1:], rules[0]]) is None
