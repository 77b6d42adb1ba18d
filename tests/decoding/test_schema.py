"""Limits on what strangers send, each of which a library would have gone over, or died of."""

import subprocess
import sys
import threading
from typing import Any

import pytest

from ventoux.decoding.schema import MAX_LEVELS, check_grammar, check_schema
from ventoux.errors import GrammarError


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels - 1):
        schema = {"items": schema}
    return schema


def chain(length: int) -> dict[str, Any]:
    """Definitions that refer to one another in a row, each three levels deep."""
    links = {f"a{i}": {"properties": {"x": {"$ref": f"#/$defs/a{i + 1}"}}} for i in range(length)}
    return {"$ref": "#/$defs/a0", "$defs": {**links, f"a{length}": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (nested(65), "64 levels deep, found 65"),
        (nested(5000), "64 levels deep, found 65"),
        ({"enum": ["x" * 70_000]}, "65536 bytes"),
        (chain(200), "400 levels"),
        ({"properties": {f"p{i}": {} for i in range(401)}}, "400 properties"),
        ({"$ref": "http://example.com/x.json"}, "not fetched"),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "not fetched"),
        ({"allOf": [{"$dynamicRef": "other.json"}]}, "not fetched"),
        ({"properties": {"a": {"$id": "http://example.com/", "$defs": {}}}}, r"\$id"),
        ({"items": {"multipleOf": 999_983}}, "multipleOf"),
        ({"multipleOf": 0.123457}, "multipleOf"),
        ({"multipleOf": 10**400}, "multipleOf"),
        ({"multipleOf": 1e300}, "multipleOf"),
        ("{}", "an object"),
    ],
)
def test_security_schemas_have_limits(schema: Any, reason: str) -> None:
    with pytest.raises(GrammarError, match=reason) as caught:
        check_schema(schema)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "schema",
    [
        nested(64),
        chain(100),
        {"properties": {"$ref": {"type": "string"}, "multipleOf": {"type": "integer"}}},
        {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {}}},
        {"$ref": "#/nowhere/3"},
        {"items": [{"multipleOf": 0.25}, {"multipleOf": 10_000}, {"multipleOf": 1.7}, {"multipleOf": True}]},
        {"$id": "http://example.com/", "type": "object"},
    ],
)
def test_what_is_within_the_limits_passes(schema: Any) -> None:
    assert check_schema(schema) == schema


def test_security_what_passes_does_not_end_the_process() -> None:
    """The longest chains that pass, in a thread with its 8 MiB of stack; a longer one did end it."""
    links = (MAX_LEVELS - 5) // 3
    code = (
        "import threading, test_schema, llguidance as g, json\n"
        f"schema = test_schema.chain({links - 1}); test_schema.check_schema(schema)\n"
        "class V:\n eos_token_id = 0; bos_token_id = None; tokens = [b'<e>', *(bytes([i]) for i in range(256))]\n"
        " special_token_ids = [0]\n __call__ = lambda s, b: [i + 1 for i in b]\n"
        "t = g.LLTokenizer(g.TokenizerWrapper(V()))\n"
        "def run():\n m = g.LLMatcher(t, g.LLMatcher.grammar_from_json_schema(schema)); m.compute_bitmask()\n"
        " print(m.get_error() or 'fine')\n"
        "thread = threading.Thread(target=run); thread.start(); thread.join()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=__file__.rsplit("/", 1)[0])
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr[-500:]
    assert threading.stack_size() == 0  # the system's


def test_security_grammars_have_limits() -> None:
    for grammar, what in ((" " * 17_000, "regular expression"), ("a: b\n" * 501, "grammar"), (b"", "grammar")):
        with pytest.raises(GrammarError, match=what):
            check_grammar(grammar, what)
    check_grammar("%json", "regular expression")
    with pytest.raises(GrammarError, match="%lark"):
        check_grammar("start: %lark {}", "grammar")
