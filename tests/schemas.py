"""JSON schemas at random, of all that can be followed, whose texts are bounded: any model comes to their end."""

from typing import Any

from hypothesis import strategies as st

NAMES = ["a", "name", "n0", "größe", "a b", "x/y", '"']


def bounded(low: int, high: int, **bounds: str) -> st.SearchStrategy[dict[str, Any]]:
    """Two numbers in order, under the names of bounds."""
    pair = st.tuples(st.integers(low, high), st.integers(low, high)).map(sorted)
    return pair.map(lambda ends: {bounds["least"]: ends[0], bounds["most"]: ends[1]})


def joined(*parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(*parts).map(lambda found: {key: value for part in found for key, value in part.items()})


values = st.one_of(st.none(), st.booleans(), st.integers(-9, 999), st.text('aé"\\\n😀', max_size=5))
leaves: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["boolean", "null"]}]),
    joined(st.just({"type": "string"}), bounded(0, 12, least="minLength", most="maxLength")),
    st.sampled_from(["^[a-f]{1,6}$", "^(yes|no)$", "^[0-9]{4}-[0-9]{2}$", "^é?x*y{0,3}z$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern, "maxLength": 20}
    ),
    st.sampled_from([{"type": "string", "format": name} for name in ("date", "uuid", "ipv4")]),
    joined(st.just({"type": "integer"}), bounded(-500, 100_000, least="minimum", most="maximum")),
    joined(st.just({"type": "number"}), bounded(-5, 50, least="minimum", most="maximum")),
    st.just({"type": "integer", "minimum": 0, "maximum": 900, "multipleOf": 7}),
    st.lists(values, min_size=1, max_size=4, unique_by=repr).map(lambda found: {"enum": found}),
    values.map(lambda value: {"const": value}),
)


def nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    arrays = joined(
        inner.map(lambda items: {"type": "array", "items": items}), bounded(0, 3, least="minItems", most="maxItems")
    )
    return st.one_of(arrays, objects(inner), st.lists(inner, min_size=1, max_size=3).map(lambda any_: {"anyOf": any_}))


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    """Some keys required, some not, and none beside them."""
    properties = draw(st.dictionaries(st.sampled_from(NAMES), inner, max_size=4))
    required = draw(st.lists(st.sampled_from(sorted(properties)), unique=True)) if properties else []
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


@st.composite
def with_definitions(draw: st.DrawFn) -> dict[str, Any]:
    """What is referred to, and one level of recursion that may end."""
    part = draw(st.recursive(leaves, nested, max_leaves=3))
    tree = {"type": "object", "properties": {"left": {"$ref": "#/$defs/leaf"}, "part": {"$ref": "#/$defs/part"}}}
    tree |= {"required": ["part"], "additionalProperties": False}
    return {"$defs": {"part": part, "leaf": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/part"}]}}} | tree


schemas: st.SearchStrategy[dict[str, Any]] = st.recursive(leaves, nested, max_leaves=8) | with_definitions()
