"""Our templates give mistral-common's ids in transformers, with the tokenizer.json that we write."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from vocabularies import FILES, MISTRAL

from ventoux import chat, tokenizer
from ventoux.chat.jinja import mistral_template
from ventoux.conversion import convert_tokenizer
from ventoux.errors import ChatError
from ventoux.tokenizer import Tokenizer

family = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.sampled_from(["a", "Hello  world ", " é\n", "[x] 1", '{"a": 1}', "👩‍👧 x", "12"]) | st.text(
    st.characters(codec="utf-8", exclude_characters="\0[]<>"), min_size=1, max_size=8
)
contents = texts | st.lists(texts.map(lambda text: {"type": "text", "text": text}), min_size=1, max_size=3)
call_ids = st.text("abcXYZ019", min_size=9, max_size=9)
TOOLS = [
    {"type": "function", "function": {"name": "f", "description": "Wétter", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "g", "description": "", "parameters": {"type": "object", "x": {}}}},
]


@st.composite
def calls(draw: st.DrawFn) -> list[dict[str, Any]]:
    made = [
        {"id": draw(call_ids), "type": "function", "function": {"name": draw(st.sampled_from("fg")), "arguments": a}}
        for a in draw(st.lists(st.sampled_from(['{"city": "Malaucène"}', "{}"]), min_size=1, max_size=2))
    ]
    results = st.sampled_from(["22", "sunny", '{"t": 22}', "[1, 2]", "a b", "007"])
    answers = [{"role": "tool", "tool_call_id": c["id"], "name": "f", "content": draw(results)} for c in made]
    return [{"role": "assistant", "content": "", "tool_calls": made}, *answers]


def said(role: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    return contents.map(lambda content: [{"role": role, "content": content}])


def conversations(version: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    turns = [said("user"), said("user"), said("assistant"), said("system")]
    middle = st.lists(st.one_of(*turns) if version == "v1" else st.one_of(*turns, calls()), max_size=5)
    return st.builds(lambda a, b, c: [m for part in [a, *b, c] for m in part], said("user"), middle, said("user"))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """transformers' tokenizer of a version, out of a folder that we wrote."""

    @cache
    def load(version: str) -> Any:
        source, target = tmp_path_factory.mktemp(version), tmp_path_factory.mktemp("out") / version
        (source / "tokenizer.model").write_bytes((MISTRAL / FILES[version]).read_bytes())
        convert_tokenizer(source, target)
        return AutoTokenizer.from_pretrained(target)

    return load


@cache
def ours(version: str) -> Tokenizer:
    return tokenizer.load(MISTRAL / FILES[version])


def written(messages: list[dict[str, Any]], version: str, tools: list[dict[str, Any]] | None) -> list[int] | None:
    """mistral-common's ids, as our code writes them; None for what both refuse."""
    try:
        return chat.encode(messages, tokenizer=ours(version), version=version, tools=tools)
    except ChatError:
        return None


@pytest.mark.parametrize("version", ["v1", "v2", "v3", "v7"])
@family
@given(data=st.data())
def test_facts_21_templates_give_the_ids_of_mistral_common(
    version: str, theirs: Callable[[str], Any], data: st.DataObject
) -> None:
    messages = data.draw(conversations(version))
    tools = data.draw(st.sampled_from([None, TOOLS[:1], TOOLS])) if version != "v1" else None
    expected = written(messages, version, tools)
    assume(expected is not None)
    found = theirs(version).apply_chat_template(messages, tools=tools, tokenize=True, return_dict=False)
    assert found == expected


def test_later_formats_have_no_template() -> None:
    assert mistral_template("v11") is None
    assert all(mistral_template(version) for version in chat.VERSIONS[:-1])


def test_the_folder_says_what_transformers_needs(theirs: Callable[[str], Any]) -> None:
    folder = Path(theirs("v3").name_or_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"], config["unk_token"]) == ("<s>", "</s>", "<unk>")
    assert config["chat_template"] == mistral_template("v3")
    assert sorted(file.name for file in folder.iterdir()) == [
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]
