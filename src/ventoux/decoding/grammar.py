"""What a text has to look like: a JSON schema, a regular expression or a grammar, as a mask of ids in every step.

The automata are llguidance's (the extra [grammar]); which bytes a token stands for, and what is too large, is said
here.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ventoux.decoding.schema import check_grammar, check_schema
from ventoux.errors import GrammarError, GrammarOverrunError, MissingExtraError, RequestError, TokenizerError
from ventoux.tokenizer.base import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

Bool = NDArray[np.bool_]

# As json.dumps writes, with or without its spaces. Where blanks may be repeated, a small model repeats them for ever.
_OPTIONS = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "coerce_one_of": False,
    "lenient": False,
}
_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,  # some 20 ms
    "step_lexer_fuel": 200_000,  # some 15 ms of one step
    "step_max_items": 50_000,  # some 3 ms of one step
    "max_items_in_row": 2_000,
    "max_lexer_states": 32_768,  # about 2 kB each, of one text
    "max_grammar_size": 100_000,  # symbols
    "verbose_errors": False,  # which would tell what was written so far
}
# An ambiguous grammar takes 50 ms and more of every step, which everybody waits for, and no limit of the library's sees
# it. A schema takes 0.3 ms.
_SECONDS, _SECONDS_OF_A_STEP = 2.0, 0.02


class Constraint:
    """One text's way through a grammar: which ids may come next, and whether anything may."""

    def __init__(self, matcher: "LLMatcher", *, space: int | None = None) -> None:
        """`matcher` expects a space before the text where `space`, the id of one, is given: see Grammars."""
        self._matcher = matcher
        self._space = space
        self._seconds = _SECONDS  # that this text may still take

    def begin(self, *, continues: bool) -> "Constraint":
        """A copy for one text: one that goes on where the prompt ends, or a text of its own."""
        copy = self.copy()
        if continues and self._space is not None:
            copy.take(self._space)
        return copy

    def copy(self) -> "Constraint":
        twin = Constraint(self._matcher.deep_copy(), space=self._space)
        twin._seconds = self._seconds
        return twin

    @property
    def complete(self) -> bool:
        """Whether the text is whole, and nothing can follow but its end."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def allowed(self, size: int) -> Bool:
        """Which of `size` ids may come next, bool [size]; those that end a text exactly when it may end here.

        Raises GrammarOverrunError when the grammar takes too long over this text.
        """
        begun = perf_counter()
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        left = self._seconds + _SECONDS_OF_A_STEP - (perf_counter() - begun)
        self._seconds = min(left, _SECONDS)
        if self._seconds < 0:
            raise GrammarOverrunError(
                f"the grammar takes more than {1000 * _SECONDS_OF_A_STEP:.0f} ms a token; make it less ambiguous"
            )
        mask = np.zeros(size, bool)  # a model may have more ids than its tokenizer: no token, never allowed
        known = np.unpackbits(bits, bitorder="little", count=min(size, 8 * len(bits)))
        mask[: len(known)] = known
        return mask

    def take(self, token_id: int) -> None:
        """The id that was chosen, one of those allowed."""
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarOverrunError(
                f"the grammar cannot be followed any further: {_reason(self._matcher.get_error())}"
            )


class Grammars:
    """Makes constraints for one tokenizer. Making this takes half a second for a large vocabulary, a constraint
    milliseconds, at the very most a second; both may happen in any thread.

    In a text of its own, tokenizers of the SentencePiece kind write a space first, which decoding takes off again. So
    their grammars begin with one, for tokens as in training; a text that goes on where a prompt ends has it behind it.

    Every method raises GrammarError for what is malformed, unsupported, larger than the limits, or matches no text.
    """

    def __init__(self, tokenizer: Tokenizer, *, end_ids: Collection[int] | None = None) -> None:
        """`end_ids` are the ids that end a text; None is the tokenizer's own.

        Raises MissingExtraError without the library.
        """
        try:
            import llguidance
        except ImportError as error:
            raise MissingExtraError("structured output", "grammar", error) from error
        self._library = llguidance
        self._limits = llguidance.LLParserLimits(**_LIMITS)
        vocabulary = _Vocabulary(tokenizer, tokenizer.end_ids if end_ids is None else end_ids)
        self._space = vocabulary.space
        self.spaced = vocabulary.space is not None  # whether a text of its own begins with a space
        self.control_id = tokenizer.control_id
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(vocabulary), eos_token=vocabulary.ends, n_vocab=len(vocabulary.tokens)
        )
        vocabulary.greedy = self._tokenizer.greedy_tokenize

    def one_of(
        self, *, json_schema: Mapping[str, Any] | None = None, regex: str | None = None, grammar: str | None = None
    ) -> Constraint | None:
        """The constraint of whichever is given, None for none; RequestError for several."""
        given = [each for each in (json_schema, regex, grammar) if each is not None]
        if len(given) > 1:
            raise RequestError(
                f"expected one of json_schema, regex and grammar, found {len(given)}; leave out the others"
            )
        if json_schema is not None:
            return self.json_schema(json_schema)
        if regex is not None:
            return self.regex(regex)
        return None if grammar is None else self.lark(grammar)

    def json_object(self) -> Constraint:
        """Any JSON object."""
        return self.json_schema({"type": "object"})

    def json_schema(self, schema: Mapping[str, Any]) -> Constraint:
        """JSON that is valid by a schema. A keyword that cannot be followed is refused; nothing is ever fetched."""
        return self._text({"json_schema": _with_options(schema)})

    def regex(self, pattern: str) -> Constraint:
        """Text that a regular expression matches as a whole, in Rust's syntax: no look-around, no back-references."""
        check_grammar(pattern, "regular expression")
        return self._text({"lark_grammar": f"start: /{_slashed(pattern)}/"})

    def lark(self, grammar: str) -> Constraint:
        """Text of a context-free grammar in llguidance's dialect of Lark, which begins with the rule `start`."""
        check_grammar(grammar, "grammar")
        return self._text({"lark_grammar": grammar})

    def rules(self, grammar: str, schemas: Mapping[str, Mapping[str, Any]], *, text: bool) -> Constraint:
        """A grammar of our own, in which @name stands for JSON that is valid by `schemas[name]`.

        `text` says that it begins with text, and not with a control token.
        """
        parts: list[dict[str, Any]] = [
            {"name": name, "json_schema": _with_options(schema)} for name, schema in schemas.items()
        ]
        own = {"lark_grammar": grammar}
        return self._text(own, parts) if text else self._compile([own, *parts], None)

    def _text(self, grammar: dict[str, Any], others: Sequence[dict[str, Any]] = ()) -> Constraint:
        if self._space is None:
            return self._compile([grammar, *others], None)
        spaced = {"lark_grammar": 'start: " " @text'}
        return self._compile([spaced, {"name": "text", **grammar}, *others], self._space)

    def _compile(self, grammars: list[dict[str, Any]], space: int | None) -> Constraint:
        """The state before the first token, whose mask is computed here, and not by the engine."""
        written = json.dumps({"grammars": grammars})
        matcher = self._library.LLMatcher(self._tokenizer, written, log_level=0, limits=self._limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            raise GrammarError(f"this grammar cannot be followed: {_reason(matcher.get_error())}")
        if matcher.is_stopped() and not matcher.is_accepting():
            raise GrammarError("this grammar matches no text")
        return Constraint(matcher, space=space)


class _Vocabulary:
    """A tokenizer as llguidance's TokenizerWrapper wants it: bytes of every token, and text -> ids for forced text."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, end_ids: Collection[int]) -> None:
        names = {token_id: name for name, token_id in tokenizer.control_tokens().items()}
        self.ends = sorted(token_id for token_id in end_ids if token_id < tokenizer.vocab_size)
        self.tokens = [
            names[i].encode() if i in names else _token_bytes(tokenizer, i) for i in range(tokenizer.vocab_size)
        ]
        if not self.ends:  # a text ends when nothing can follow; an id that no model has stands for that
            self.ends = [len(self.tokens)]
            self.tokens.append(b"<end>")
        self.eos_token_id = self.ends[0]
        self.special_token_ids = sorted({*names, *self.ends})
        self.greedy: Any = lambda text: []
        self._encode = tokenizer.encode
        spaces = [i for i, each in enumerate(self.tokens) if each == b" "]
        self.space = next((i for i in spaces if tokenizer.decode([i]) == ""), None)  # else none is put before a text

    def __call__(self, data: bytes) -> list[int]:
        """Ids that spell the bytes in the middle of a text, as the tokenizer would cut them.

        It may put a space first: behind a line break, which nothing merges with, the rest is as it should be.
        """
        text = data.decode()
        for before in ("", "\n", " \n"):
            ids = self._encode(before[-1:] + text)
            spelled = b""
            for start in range(len(ids) + 1):
                if spelled == before.encode() and b"".join(self.tokens[i] for i in ids[start:]) == data:
                    return ids[start:]
                if start == len(ids) or len(spelled) > len(before):
                    break
                spelled += self.tokens[ids[start]]
        found: list[int] = self.greedy(text)
        return found


def _token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    try:
        return tokenizer.token_bytes(token_id)
    except TokenizerError:  # an id that this vocabulary leaves out
        return b""


def _with_options(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {**check_schema(schema), "x-guidance": _OPTIONS}


def _slashed(pattern: str) -> str:
    r"""A pattern as it stands between slashes: a/b is a\/b, and a line break is \n."""
    out, escaped = [], False
    for character in pattern:
        if character == "\n":
            out.append("n" if escaped else "\\n")
        else:
            out.append("\\/" if character == "/" and not escaped else character)
        escaped = character == "\\" and not escaped
    return "".join(out)


def _reason(message: str) -> str:
    """The first lines of what the library says, as one line."""
    line = " ".join(message.split())
    return line if len(line) <= 200 else f"{line[:197]}..."
