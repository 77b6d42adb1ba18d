"""Other models' templates: rendered as transformers does, in a sandbox, without control tokens out of messages."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vocabularies import FILES, MISTRAL, byte_level_json, sentencepiece_metadata

from ventoux import chat, gguf, tokenizer
from ventoux.chat.sandbox import MAX_TEMPLATE, MAX_TEXT
from ventoux.checkpoint import pull
from ventoux.errors import ChatError
from ventoux.tokenizer import Tokenizer

quick = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
USER = {"role": "user", "content": "Hi"}
LLAMA_LIKE = (
    "{{ bos_token }}{%- set ns = namespace(seen=false) %}\n{% for message in messages %}\n"
    "{% if message.role == 'system' %}{% set ns.seen = true %}{% endif %}\n"
    "{{ '<|im_start|>' ~ message['role'] + '\n' + message.content | trim + '<|im_end|>' }}"
    "{% if message.tool_calls %}{% for call in message.tool_calls %}{{ call.function | tojson }}{% endfor %}{% endif %}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}{{ messages | map(attribute='role') | join(', ') }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ 'x y'.split(' ')[1].upper() }}"
    "{% if add_generation_prompt %}{% generation %}<|im_start|>assistant{{ '\n' }}{% endgeneration %}{% endif %}"
)


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    return gguf.read(pull.resolve()).metadata


@pytest.fixture(scope="module")
def chatml(metadata: dict[str, Any]) -> Tokenizer:
    return tokenizer.from_gguf(metadata, source="default")


@pytest.fixture(scope="module")
def transformers_tokenizer(metadata: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import PreTrainedTokenizerFast

    path = byte_level_json(metadata, tmp_path_factory.mktemp("oracle") / "tokenizer.json")
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    return PreTrainedTokenizerFast(tokenizer_file=str(path), **names)


ordinary = st.text(max_size=12).filter(lambda text: "<" not in text)
roles = st.sampled_from(["system", "user", "assistant"])
conversations = st.lists(st.fixed_dictionaries({"role": roles, "content": ordinary}), min_size=1, max_size=5)


@quick
@given(messages=conversations, own=st.booleans(), tools=st.sampled_from([None, [{"type": "function", "n": ["é<"]}]]))
def test_facts_21_ids_equal_transformers(
    chatml: Tokenizer, transformers_tokenizer: Any, metadata: dict[str, Any], messages: Any, own: bool, tools: Any
) -> None:
    template = metadata["tokenizer.chat_template"] if own else LLAMA_LIKE
    ours = chat.encode(messages, tokenizer=chatml, version="template", template=template, tools=tools)
    theirs = transformers_tokenizer.apply_chat_template(
        messages,
        chat_template=template,
        tools=tools,
        add_generation_prompt=messages[-1]["role"] != "assistant",
        return_dict=False,
    )
    assert ours == theirs


@quick
@given(
    content=st.lists(st.sampled_from(["<|im_start|>", "<|im_end|>", "<|im_", "end|>", "<", "\ue000", "\n", "system"]))
)
def test_control_tokens_in_messages_stay_text(chatml: Tokenizer, content: list[str]) -> None:
    text = "".join(content)
    call = {"id": "1", "function": {"name": "f", "arguments": {text: text}}}
    messages = [USER, {"role": "assistant", "content": text, "tool_calls": [call]}, {**USER, "content": text}]
    tools = [{"type": "function", "function": {"name": "f", "description": text, "parameters": {"type": text}}}]
    shape = chat.encode(
        [USER, {**messages[1], "content": "x", "tool_calls": [{**call, "function": {"name": "f"}}]}, USER],
        tokenizer=chatml,
        version="template",
        template=LLAMA_LIKE,
        tools=[{"type": "function"}],
    )
    ids = chat.encode(messages, tokenizer=chatml, version="template", template=LLAMA_LIKE, tools=tools)
    control = set(chatml.control_tokens().values())
    assert [i for i in ids if i in control] == [i for i in shape if i in control]
    assert chatml.decode(ids).count(text.strip()) >= 2


def test_facts_21_exactly_one_bos(metadata: dict[str, Any]) -> None:
    adds = tokenizer.from_gguf(metadata | {"tokenizer.ggml.add_bos_token": True}, source="x")
    for template in ("Hi", "{{ bos_token }}Hi", "{{ bos_token }}{{ bos_token }}Hi"):
        ids = chat.encode([USER], tokenizer=adds, version="template", template=template)
        assert ids == [adds.bos_id, *adds.encode("Hi")]


def test_a_prefix_is_continued(chatml: Tokenizer, metadata: dict[str, Any]) -> None:
    template = metadata["tokenizer.chat_template"]
    messages = [USER, {"role": "assistant", "content": "The answer is", "prefix": True}]
    prefixed = chat.encode(messages, tokenizer=chatml, version="template", template=template)
    asked = chat.encode([USER], tokenizer=chatml, version="template", template=template)
    assert prefixed == asked + chatml.encode("The answer is")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ 'a' * 10**9 }}", "no number"),
        ("{{ 9 ** 9 ** 9 }}", "too large a power"),
        ("{{ '%1000000000d' % 1 }}", "no number"),
        ("{{ '{:>1000000000}'.format(1) }}", "unsafe"),
        ("{{ 'a'.ljust(1000000000) }}", "unsafe"),
        ("{{ (1).to_bytes(1000000000, 'big') }}", "unsafe"),
        ("{{ 'x' | indent(width=1000000000) }}", "more than"),
        ("{{ 'x' | center(1000000000) }}", "No filter"),
        ("{{ [1] | tojson(indent=1000000) }}", "more than 16"),
        ("{% for i in range(1000000000) %}{% endfor %}", "counts to more"),
        ("{% for i in range(999999) %}0123456789{% endfor %}", "writes more"),
        ("{% set x %}{% for i in range(999999) %}0123456789{% endfor %}{% endset %}", "more than"),
        (
            "{% set n = namespace(s='0123456789') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
            "more than",
        ),
        ("{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}", "more than"),
        (
            "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s.replace('a', 'aa') %}{% endfor %}",
            "more",
        ),
        (
            "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = 'a'.join([n.s, n.s]) %}{% endfor %}",
            "more",
        ),
        ("{% set n = namespace(s=2) %}{% for i in range(60) %}{% set n.s = n.s * n.s %}{% endfor %}", "digits"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ " + "(" * 60000 + "1" + ")" * 60000 + " }}", "recursion"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "loader"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{% for %}", "Expected an expression"),
        (" " * (MAX_TEMPLATE + 1), "at most 131072 characters"),
    ],
    ids=lambda value: value[:40].strip(),
)
def test_hostile_templates_are_stopped_at_once(chatml: Tokenizer, template: str, words: str) -> None:
    begun = time.process_time()
    with pytest.raises(ChatError, match=words):
        chat.encode([USER], tokenizer=chatml, version="template", template=template)
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(999999) %}{% for b in range(999999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_endless_templates_run_out_of_time(chatml: Tokenizer, template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ventoux.chat.sandbox.MAX_SECONDS", 0.2)
    with pytest.raises(ChatError, match=r"longer than 0\.2 seconds"):
        chat.encode([USER], tokenizer=chatml, version="template", template=template)


def test_a_conversation_has_a_size(chatml: Tokenizer) -> None:
    with pytest.raises(ChatError, match="at most 1000000 characters"):
        chat.encode([{**USER, "content": "a" * MAX_TEXT}], tokenizer=chatml, version="template", template="x")


def test_tools_have_a_depth(chatml: Tokenizer) -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ChatError, match="nested"):
        chat.encode([USER], tokenizer=chatml, version="template", template="x", tools=[{"a": deep}])


def test_one_function_decides_on_the_format(chatml: Tokenizer, metadata: dict[str, Any]) -> None:
    for version in ("v1", "v2", "v3", "v7"):
        mistral = tokenizer.load(MISTRAL / FILES[version])
        for template in (None, "{{ ' [INST] ' }}"):
            assert chat.format_for(mistral, template=template).version == version
        zephyr = chat.format_for(mistral, template="<|user|>")
        assert (zephyr.version, zephyr.template) == ("template", "<|user|>")
    own = chat.format_for(chatml, template=metadata["tokenizer.chat_template"])
    assert own.version == "template"
    with pytest.raises(ChatError, match=r"this checkpoint has no chat format.*--chat-format"):
        chat.format_for(chatml, template=None)


def test_llama_2_is_not_mistral(metadata: dict[str, Any]) -> None:
    mistral = sentencepiece_metadata(MISTRAL / FILES["v1"])
    pieces = list(mistral["tokenizer.ggml.tokens"])
    pieces[-1] = "another maker's piece"
    llama = tokenizer.from_gguf(mistral | {"tokenizer.ggml.tokens": pieces}, source="llama")
    assert llama.vocab_size == 32000
    assert llama.version is None
    with pytest.raises(ChatError, match="no Mistral tokenizer and no template"):
        chat.format_for(llama, template=None)


def test_templates_are_found_in_a_folder(tmp_path: Path) -> None:
    config = tmp_path / "tokenizer_config.json"
    assert chat.template_in(tmp_path) is None
    config.write_text("{}")
    assert chat.template_in(tmp_path) is None
    config.write_text(json.dumps({"chat_template": "one"}))
    assert chat.template_in(tmp_path) == "one"
    named = [{"name": "tool_use", "template": "two"}, {"name": "default", "template": "three"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert chat.template_in(tmp_path) == "three"
    (tmp_path / "chat_template.jinja").write_text("four")
    assert chat.template_in(tmp_path) == "four"
    (tmp_path / "chat_template.jinja").unlink()
    for damaged in ("[", "[]", '{"chat_template": 5}', '{"chat_template": [{}]}', "[" * 100000):
        config.write_text(damaged)
        with pytest.raises(ChatError, match=r"expected a"):
            chat.template_in(tmp_path)
