"""What a JSON schema or a grammar from a stranger may be, checked before a library goes into it.

llguidance bounds its own work, but not all of it: it follows references and rules by recursion, so that a few thousand
of them in a chain overflow the stack and end the process; and a `multipleOf` is an automaton with that many states.
"""

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from ventoux.errors import GrammarError, shown

MAX_BYTES = 65_536  # of a schema
MAX_DEPTH = 64  # of a schema's JSON
MAX_LEVELS = 400  # of a schema and all that it refers to, one in the other; 900 overflow a stack of 8 MiB
MAX_PROPERTIES = 400  # of one object: 500 that may be left out are more than one state may hold
MAX_STATES = 10_000  # of a multipleOf; a million take ten seconds
MAX_GRAMMAR = 16_384  # bytes of a regular expression or grammar
MAX_LINES = 500  # of a grammar; 6,000 overflow the stack


def check_schema(schema: Any) -> dict[str, Any]:
    """The schema itself, when it is a JSON object within the limits. Raises GrammarError that names what is not."""
    if not isinstance(schema, Mapping):
        raise GrammarError(f"expected a JSON schema, an object, found {shown(schema)}")
    depth = _depth(schema)
    if depth > MAX_DEPTH:
        raise GrammarError(f"a JSON schema may be nested {MAX_DEPTH} levels deep, found {depth}; flatten it")
    try:
        size = len(json.dumps(schema, ensure_ascii=False, allow_nan=False).encode())
    except (TypeError, ValueError) as error:
        raise GrammarError(f"expected a JSON schema, found an object that JSON cannot write: {error}") from None
    if size > MAX_BYTES:
        raise GrammarError(f"a JSON schema may have {MAX_BYTES} bytes, found {size}; make it smaller")
    levels = depth
    for reference in sorted({each for node in _objects(schema) for each in _references(node)}):
        levels += _depth(_target(schema, reference))
    if levels > MAX_LEVELS:
        raise GrammarError(
            f"a JSON schema may have {MAX_LEVELS} levels, those of all that it refers to included, found {levels};"
            " refer to fewer definitions"
        )
    for node in _objects(schema):
        if len(node) > MAX_PROPERTIES:
            raise GrammarError(f"a JSON schema may have {MAX_PROPERTIES} properties in one object, found {len(node)}")
        _check_multiple(node.get("multipleOf"))
        if node is not schema and isinstance(node.get("$id"), str):  # "#/..." would mean something else inside
            raise GrammarError("a JSON schema may have an $id at its top only, found one inside; leave it out")
    return dict(schema)


def check_grammar(grammar: Any, what: str) -> None:
    """Raises GrammarError unless it is text within the limits; `what` is what to call it."""
    if not isinstance(grammar, str):
        raise GrammarError(f"expected a {what} as text, found {shown(grammar)}")
    size, lines = len(grammar.encode(errors="replace")), len(grammar.splitlines())
    if size > MAX_GRAMMAR or lines > MAX_LINES:
        raise GrammarError(
            f"a {what} may have {MAX_GRAMMAR} bytes and {MAX_LINES} lines, found {size} and {lines}; make it smaller"
        )
    for word in ("%json", "%lark"):  # whose contents would pass by these checks
        if what == "grammar" and word in grammar:
            raise GrammarError(f"a grammar may not contain {word}, found it; give a JSON schema instead")


def _depth(value: Any) -> int:
    """Levels of objects and lists: 1 for {}, 2 for {"a": []}; counted no further than just beyond MAX_DEPTH."""
    depth, level = 0, [value]
    while depth <= MAX_DEPTH:
        level = [each for each in level if isinstance(each, Mapping | list | tuple)]
        if not level:
            break
        depth += 1
        level = [item for each in level for item in (each.values() if isinstance(each, Mapping) else each)]
    return depth


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every object in it."""
    stack = [value]
    while stack:
        each = stack.pop()
        if isinstance(each, Mapping):
            yield each
            stack += each.values()
        elif isinstance(each, list | tuple):
            stack += each


def _references(node: Mapping[str, Any]) -> Iterator[str]:
    for key in ("$ref", "$dynamicRef", "$recursiveRef"):
        reference = node.get(key)
        if isinstance(reference, str):  # else a property of that name
            if not reference.startswith("#"):
                raise GrammarError(
                    f"{key}: expected a reference within the schema (#/...), found {shown(reference)}, which is not"
                    " fetched; put the definition into the schema"
                )
            yield reference


def _target(schema: Mapping[str, Any], reference: str) -> Any:
    """What "#/$defs/a" refers to, the whole schema where that is not plain."""
    found: Any = schema
    for step in reference.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and step in found:
            found = found[step]
        elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        else:
            return schema
    return found


def _check_multiple(multiple: Any) -> None:
    """0.25 needs 25 states, 1200 as many."""
    if not isinstance(multiple, int | float) or isinstance(multiple, bool):
        return  # a property of that name, or what the library refuses
    if abs(multiple) <= MAX_STATES:
        digits, exponent = Decimal(str(multiple)).normalize().as_tuple()[1:]
        assert isinstance(exponent, int)
        if int("".join(map(str, digits))) * 10 ** max(exponent, 0) <= MAX_STATES:
            return
    raise GrammarError(
        f"multipleOf may be {MAX_STATES} at most, digits behind the point included, found {shown(multiple)}"
    )
