"""Foreign chat templates, rendered as transformers renders them, within limits of size and time.

A template comes with a checkpoint, from anybody. Jinja's sandbox keeps it from reaching Python; what is added here
keeps it from using up the machine. No value may weigh more than MAX_TEXT, counted with everything it contains, so that
every single operation is short; and every operation that could make a value or go round again looks at the clock first.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import wraps
from time import monotonic
from typing import Any, NoReturn, cast

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS, do_indent, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from ventoux.errors import ChatError

MAX_TEMPLATE = 1 << 17  # characters; the longest in use have about 30,000
MAX_TEXT = 1_000_000  # characters that a conversation may come to: a quarter of a million tokens
MAX_SECONDS = 3.0

# The filters and methods that chat templates use and whose results are no larger than what goes in, but for those that
# Sandbox measures beforehand: indent, join, replace, tojson.
_FILTERS = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby", "int"),
    *("items", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "safe"),
    *("select", "selectattr", "sort", "string", "sum", "title", "trim", "unique", "upper"),
)
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        (
            *("capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit", "islower"),
            *("isnumeric", "isspace", "isupper", "join", "lower", "lstrip", "partition", "removeprefix"),
            *("removesuffix", "replace", "rfind", "rpartition", "rsplit", "rstrip", "split", "splitlines"),
            *("startswith", "strip", "title", "upper"),
        )
    ),
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"count", "index"}),
    tuple: frozenset({"count", "index"}),
    int: frozenset(),
    float: frozenset(),
}


def render(template: str, variables: Mapping[str, Any]) -> str:
    """The template's text; ChatError when it is wrong, refuses the conversation, or goes past a limit."""
    if len(template) > MAX_TEMPLATE:
        raise ChatError(f"chat template: expected at most {MAX_TEMPLATE} characters, found {len(template)}")
    try:
        sandbox = Sandbox()
        sandbox.bounded(dict(variables))
        pieces: list[str] = []
        size = 0
        for piece in sandbox.from_string(sandbox.guarded(template)).generate(**variables):
            sandbox.step()
            pieces.append(piece)
            size += len(piece)
            if size > MAX_TEXT:
                sandbox.stop(f"it writes more than {MAX_TEXT} characters")
        return "".join(pieces)
    except ChatError:
        raise
    except Exception as error:  # a template is a foreign program: whatever it raises is its own failure
        raise ChatError(f"chat template: {error or type(error).__name__}") from None


class _Generation(Extension):
    """`{% generation %}`, by which transformers finds an assistant's tokens: only its contents matter here."""

    tags = {"generation"}  # noqa: RUF012, an attribute of Jinja's

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox with transformers' globals, made for one rendering: its clock runs from the start."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            finalize=self.bounded,
            optimized=False,
        )
        self._deadline = monotonic() + MAX_SECONDS
        self.concat = self._concat  # type: ignore[method-assign]
        self.globals = {
            "namespace": Namespace,
            "range": self._range,
            "dict": lambda *args, **kwargs: dict(*args, **kwargs),
            "raise_exception": _raise_exception,
            "strftime_now": lambda pattern: datetime.now().strftime(pattern),
        }
        own: dict[str, Callable[..., Any]] = {
            "indent": self._indent,
            "join": self._join,
            "replace": self._replace,
            "tojson": self._tojson,
        }
        kept = {name: FILTERS[name] for name in _FILTERS}
        self.filters = {name: self._measured(function) for name, function in {**kept, **own}.items()}
        self.filters |= {"_ticks": self._ticks, "_bounded": self.bounded, "_concat": self._concat}

    def guarded(self, source: str) -> nodes.Template:
        """The template, with loops that look at the clock and lists that are weighed."""
        tree: nodes.Template = _Guards().visit(self.parse(source))
        tree.set_environment(self)
        return tree

    def stop(self, reason: str) -> NoReturn:
        raise ChatError(f"chat template: stopped, {reason}")

    def step(self) -> None:
        if monotonic() > self._deadline:
            self.stop(f"it runs longer than {MAX_SECONDS:g} seconds")

    def bounded(self, value: Any) -> Any:
        """The value, if it weighs at most MAX_TEXT with all that it contains, counted as often as it is contained."""
        self.step()
        left, stack = MAX_TEXT, [value]
        while stack:
            item = stack.pop()
            if isinstance(item, Namespace):
                self.stop("it uses a namespace as a value")
            if isinstance(item, int) and item.bit_length() > 1024:
                self.stop("it computes a number of more than 300 digits")
            left -= 1
            if isinstance(item, str | list | tuple | dict):
                left -= len(item)
            if left < 0:
                self.stop(f"it makes a value of more than {MAX_TEXT} characters")
            if isinstance(item, list | tuple):
                stack += item
            elif isinstance(item, dict):
                stack += [*item.keys(), *item.values()]
        return value

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        allowed = next((names for kind, names in _METHODS.items() if isinstance(obj, kind)), None)
        return (allowed is None or attr in allowed) and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """No `str.format`: a width in it makes a text of any length. `is_safe_attribute` refuses it then."""

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.step()
        owner, method = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str) and method == "join":
            return self._join(args[0], owner)
        if isinstance(owner, str) and method == "replace":
            return self._replace(owner, *args)
        result = super().call(context, obj, *args, **kwargs)
        return result if isinstance(result, Namespace) else self.bounded(result)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`*` and `**` on numbers only, and `%` too: on texts and lists they make values of any size."""
        self.step()
        if operator in ("*", "**", "%") and not all(isinstance(side, int | float) for side in (left, right)):
            self.stop(f"it uses {operator} on something that is no number")
        if operator == "**" and (abs(right) > 64 or abs(left) > 1 << 16):
            self.stop("it computes too large a power")
        return self.bounded(super().call_binop(context, operator, left, right))

    def _measured(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            for arg in (*args, *kwargs.values()):
                self.bounded(arg)
            result = function(*args, **kwargs)
            return self._ticks(result) if isinstance(result, Iterator) else self.bounded(result)

        return measured

    def _ticks(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.step()
            yield item

    def _range(self, *bounds: int) -> range:
        numbers = range(*bounds)
        if len(numbers) > MAX_TEXT:
            self.stop(f"it counts to more than {MAX_TEXT}")
        return numbers

    def _concat(self, parts: Iterable[Any]) -> str:
        texts = [str(part) for part in self.bounded(list(parts))]
        if sum(map(len, texts)) > MAX_TEXT:
            self.stop(f"it makes a text of more than {MAX_TEXT} characters")
        return "".join(texts)

    def _indent(self, text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        added = width if isinstance(width, int) else len(width)
        if (text.count("\n") + 1) * added > MAX_TEXT:
            self.stop(f"it makes a text of more than {MAX_TEXT} characters")
        indented: str = do_indent(text, width, first, blank)
        return indented

    def _join(self, items: Iterable[Any], separator: str = "", attribute: str | None = None) -> str:
        values = list(items if attribute is None else map(make_attrgetter(self, attribute), items))
        joints = [str(separator)] * len(values)  # one for each value: the first place has none to its left
        return self._concat([part for pair in zip(["", *joints], values, strict=False) for part in pair])

    def _replace(self, value: Any, old: str, new: str, count: int | None = None) -> str:
        text = str(value)
        if len(text) + text.count(old) * len(new) > MAX_TEXT:
            self.stop(f"it makes a text of more than {MAX_TEXT} characters")
        return text.replace(old, new, -1 if count is None else count)

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """transformers' tojson: without HTML's escapes."""
        if indent is not None and indent > 16:
            self.stop("it indents JSON by more than 16 spaces")
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Guards(NodeTransformer):
    """Puts Sandbox's filters round the parts of a template that Jinja lets nobody intercept."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802, a name of Jinja's
        self.generic_visit(node)
        node.iter = _filtered(cast(nodes.Expr, node.iter), "_ticks")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "_concat")

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "_bounded")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "_bounded")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, "_bounded") if node.ctx == "load" else node


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
