"""What a constraint allows: every text of the schema or grammar, no other, and the end exactly where it may end."""

import itertools
import json
import re
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemas import schemas
from vocabularies import FILES, MISTRAL

from ventoux import tokenizer
from ventoux.decoding import Constraint, Grammars, grammar
from ventoux.errors import GenerationError, GrammarError
from ventoux.tokenizer import Tokenizer

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}
few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=[*FILES, "default"])
def written_by(request: pytest.FixtureRequest, default_model: Any) -> tuple[Tokenizer, Grammars]:
    """Each kind of vocabulary: pieces with bytes, GPT-2's, tekken's."""
    found = tokenizer.load(default_model if request.param == "default" else MISTRAL / FILES[request.param])
    return found, Grammars(found)


@pytest.fixture(scope="module")
def default(default_model: Any) -> tuple[Tokenizer, Grammars]:
    found = tokenizer.load(default_model)
    return found, Grammars(found)


def accepts(constraint: Constraint, text_tokenizer: Tokenizer, ids: list[int], *, continues: bool) -> bool:
    """Whether these ids may be written, and then the end."""
    state = constraint.begin(continues=continues)
    for token_id in ids:
        if not state.allowed(text_tokenizer.vocab_size)[token_id]:
            return False
        state.take(token_id)
    return bool(state.allowed(text_tokenizer.vocab_size)[text_tokenizer.eos_id])


def at_random(constraint: Constraint, text_tokenizer: Tokenizer, seed: int) -> str:
    """What a model writes that knows nothing: any id that is allowed."""
    rng = np.random.default_rng(seed)
    state, ids = constraint.begin(continues=False), []
    while not state.complete:
        token_id = int(rng.choice(np.flatnonzero(state.allowed(text_tokenizer.vocab_size))))
        if token_id in text_tokenizer.end_ids:
            break
        state.take(token_id)
        ids.append(token_id)
        assert len(ids) < 2000
    return text_tokenizer.decode(ids)


@few
@given(schema=schemas, seed=st.integers(0, 99))
def test_random_ids_make_json_that_is_valid(default: tuple[Tokenizer, Grammars], schema: Any, seed: int) -> None:
    text_tokenizer, grammars = default
    text = at_random(grammars.json_schema(schema), text_tokenizer, seed)
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize("seed", range(3))
def test_every_vocabulary_writes_what_it_is_to(written_by: tuple[Tokenizer, Grammars], seed: int) -> None:
    text_tokenizer, grammars = written_by
    made = json.loads(at_random(grammars.json_schema(PERSON), text_tokenizer, seed))
    jsonschema.Draft202012Validator(PERSON).validate(made)
    for pattern in ("[a-c]{2}/é\n?", "a\\\nb\\/c\nd"):
        assert re.fullmatch(pattern, at_random(grammars.regex(pattern), text_tokenizer, seed))
    assert at_random(grammars.lark('start: "no" | a "s"\na: "ye"'), text_tokenizer, seed) in ("yes", "no")


def test_an_answer_is_written_in_the_tokens_of_training(written_by: tuple[Tokenizer, Grammars]) -> None:
    """As a text of its own it is cut as `encode` cuts it; behind a prompt there is no space before it."""
    text_tokenizer, grammars = written_by
    whole, cut = '{"name": "Zoë", "age": 12}', '{"name": "Zoë'
    constraint = grammars.json_schema(PERSON)
    assert accepts(constraint, text_tokenizer, text_tokenizer.encode(whole), continues=False)
    assert not accepts(constraint, text_tokenizer, text_tokenizer.encode(cut), continues=False)
    prompt = text_tokenizer.encode("As JSON:\n")
    behind = text_tokenizer.encode("As JSON:\n" + whole)
    assert behind[: len(prompt)] == prompt
    assert accepts(constraint, text_tokenizer, behind[len(prompt) :], continues=True)
    spaced = text_tokenizer.encode("As JSON: " + whole)[len(text_tokenizer.encode("As JSON:")) :]
    assert not accepts(constraint, text_tokenizer, spaced, continues=True)


def test_control_tokens_and_ids_without_a_token_are_never_allowed(written_by: tuple[Tokenizer, Grammars]) -> None:
    text_tokenizer, grammars = written_by
    state = grammars.regex("(?s:.*)").begin(continues=False)
    size = text_tokenizer.vocab_size
    allowed = np.flatnonzero(state.allowed(size + 100))
    assert allowed.max() < size
    assert {*text_tokenizer.control_tokens().values()} & {*allowed.tolist()} <= text_tokenizer.end_ids
    assert len(state.allowed(50)) == 50


def test_the_end_is_allowed_exactly_where_the_text_may_end(default: tuple[Tokenizer, Grammars]) -> None:
    text_tokenizer, grammars = default
    state = grammars.regex("a(b|bb)?").begin(continues=False)
    ends = []
    for letter in "abb":
        ends.append(bool(state.allowed(text_tokenizer.vocab_size)[text_tokenizer.eos_id]))
        assert not state.complete
        state.take(text_tokenizer.encode(letter)[0])
    assert ends == [False, True, True]
    assert state.complete


def test_a_copy_goes_its_own_way(default: tuple[Tokenizer, Grammars]) -> None:
    text_tokenizer, grammars = default
    a, b = (text_tokenizer.encode(letter)[0] for letter in "ab")
    state = grammars.regex("aa|bb").begin(continues=False)
    twin = state.copy()
    twin.take(b)
    state.take(a)
    assert [each.allowed(text_tokenizer.vocab_size)[[a, b]].tolist() for each in (state, twin)] == [
        [True, False],
        [False, True],
    ]


def test_blanks_cannot_be_repeated_for_ever(default: tuple[Tokenizer, Grammars]) -> None:
    text_tokenizer, grammars = default
    for text in ('{"name":  "a"}', '{ "name": "a"}', '{"name": "a" }', '{"name":\n"a"}', ' {"name": "a"}'):
        constraint = grammars.json_schema({**PERSON, "x-guidance": {"whitespace_flexible": True}})
        assert not accepts(constraint, text_tokenizer, text_tokenizer.encode(text), continues=False), text


@pytest.mark.parametrize(
    ("kind", "source", "reason"),
    [
        ("json_schema", [], "expected a JSON schema, an object"),
        ("json_schema", {"type": "strin"}, "Invalid type"),
        ("json_schema", {"not": {}}, "Unimplemented keys"),
        ("json_schema", {"type": "integer", "minimum": 3, "maximum": 2}, "Unsatisfiable"),
        ("json_schema", {"$ref": "#"}, "grammar"),
        ("json_schema", {"type": "string", "pattern": "(?=a)"}, "look-around"),
        ("json_schema", {"enum": [float("nan")]}, "JSON cannot write"),
        ("regex", "(a", "unclosed"),
        ("regex", r"(a)\1", "backreferences"),
        ("regex", "[^\\s\\S]", "grammar"),
        ("regex", 7, "as text"),
        ("lark", "wurst", "Expected token"),
        ("lark", "start: @other", "unknown grammar"),
        ("lark", 'start: %json {"type": "object"}', "may not contain %json"),
    ],
)
def test_what_cannot_be_followed_is_refused(
    default: tuple[Tokenizer, Grammars], kind: str, source: Any, reason: str
) -> None:
    with pytest.raises(GrammarError, match=re.escape(reason)) as caught:
        getattr(default[1], kind)(source)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_security_a_text_that_takes_too_long_ends_with_an_error(
    default: tuple[Tokenizer, Grammars], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that says 1 ms of every step, and then 50."""
    text_tokenizer, grammars = default
    state = grammars.regex("a*").begin(continues=False)
    ticks = itertools.chain([0.001 * i for i in range(400)], itertools.count(1, 0.05))
    monkeypatch.setattr(grammar, "perf_counter", lambda: next(ticks))
    follow(state, [text_tokenizer.encode("a")[0]] * 200, text_tokenizer.vocab_size)
    with pytest.raises(GenerationError, match="less ambiguous"):
        follow(state, [text_tokenizer.encode("a")[0]] * 300, text_tokenizer.vocab_size)


def test_security_a_text_with_too_many_states_ends_with_an_error(default: tuple[Tokenizer, Grammars]) -> None:
    """Each character that is counted is a few states, which take memory."""
    text_tokenizer, grammars = default
    state = grammars.json_schema({"type": "string", "maxLength": 60_000}).begin(continues=False)
    ids = [text_tokenizer.encode('"')[0]] + [text_tokenizer.encode("a")[0]] * 9000
    with pytest.raises(GenerationError, match="too many states"):
        follow(state, ids, text_tokenizer.vocab_size)


def follow(state: Constraint, ids: list[int], size: int) -> None:
    for token_id in ids:
        state.allowed(size)
        state.take(token_id)
