"""What all tokenizers share: control tokens, checks of ids, and text that comes out as soon as it is certain."""

import codecs
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ventoux.errors import TokenizerError
from ventoux.tokenizer.specials import Specials

_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


class PieceTokenizer(ABC):
    """A `Tokenizer` (see base.py) made of two things: how text is cut, and which bytes each token shows."""

    # What an invalid byte turns into: "replace" gives one U+FFFD for a cut-off character, as byte-level tokenizers
    # have it; "surrogateescape" gives one for each byte, as sentencepiece has it.
    _errors = "replace"

    def __init__(self, vocab_size: int, specials: Specials) -> None:
        self.vocab_size = vocab_size
        self.specials = specials
        self._control_ids = frozenset(specials.control.values())

    @abstractmethod
    def _cut(self, text: str) -> list[int]:
        """Text to ids, none of which is a control token."""

    @abstractmethod
    def _surface(self, token_id: int, first: bool) -> bytes:
        """The bytes that a token shows; `first` when no token showed anything before it."""

    @property
    def bos_id(self) -> int | None:
        return self.specials.bos_id

    @property
    def eos_id(self) -> int | None:
        return self.specials.eos_id

    @property
    def end_ids(self) -> frozenset[int]:
        return self.specials.end_ids

    @property
    def version(self) -> str | None:
        return self.specials.version

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """Text to ids. `bos` puts the BOS first if the model's prompts begin with one; `eos` puts the EOS last."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])  # bytes that are no UTF-8 come from shells and pipes as these surrogates
            found = f"the byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else "half a surrogate pair"
            raise TokenizerError(
                f"expected text, found {found} at character {error.start}, which is no UTF-8; convert the input"
            ) from None
        try:
            ids = self._cut(text)
        except TokenizerError:
            raise
        except Exception as error:  # what the library says of a vocabulary that lacks what the text needs
            raise TokenizerError(f"this tokenizer cannot write the text as ids: {error}") from error
        if bos and self.specials.adds_bos and self.bos_id is not None:
            ids.insert(0, self.bos_id)
        if eos:
            if self.eos_id is None:
                raise TokenizerError("this tokenizer has no EOS token: encode without eos=True")
            ids.append(self.eos_id)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, control tokens left out; bytes that are no character become U+FFFD."""
        stream = self.stream()
        return "".join([stream.push(token_id) for token_id in ids]) + stream.finish()

    def stream(self, after: Sequence[int] = ()) -> "TextStream":
        """A decoder whose pieces, joined, are what `decode(after + ids)` adds to `decode(after)`.

        If `after` ends inside a character, its bytes are shown with the rest of it.
        """
        stream = TextStream(self._shown, errors=self._errors)
        for token_id in after:
            stream.push(token_id)
        return stream

    def token_bytes(self, token_id: int) -> bytes:
        """The raw bytes of one token in the middle of a text, b"" for a control token."""
        return self._shown(token_id, False) or b""

    def control_id(self, piece: str) -> int | None:
        return self.specials.control.get(piece)

    def control_tokens(self) -> dict[str, int]:
        return dict(self.specials.control)

    def _shown(self, token_id: int, first: bool) -> bytes | None:
        if not 0 <= token_id < self.vocab_size:
            raise TokenizerError(f"expected an id from 0 to {self.vocab_size - 1}, found {token_id}")
        return None if token_id in self._control_ids else self._surface(token_id, first)


class TextStream:
    """Ids in, text out, in constant time for each id: only an unfinished character (at most 3 bytes) is kept.

    Bytes E2 82 AC in three tokens give "", "", "€"; E2 82 and then a control token give "", "", "\\ufffd".
    """

    def __init__(self, shown: Callable[[int, bool], bytes | None], *, errors: str) -> None:
        self._shown = shown
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors)
        self._first = True

    def push(self, token_id: int) -> str:
        """Text that this id makes certain; "" while a character is unfinished."""
        data = self._shown(token_id, self._first)
        if data is None:  # a control token ends what came before it, unfinished or not
            return self.finish()
        self._first = False
        return self._text(data, final=False)

    def finish(self) -> str:
        """What was held back, with bytes that never became a character as U+FFFD."""
        return self._text(b"", final=True)

    def _text(self, data: bytes, *, final: bool) -> str:
        return _ESCAPED_BYTE.sub("\ufffd", self._utf8.decode(data, final))


@contextmanager
def reading(source: str | Path) -> Iterator[None]:
    """Turn whatever a library says about a damaged file into a TokenizerError that names the file and the reason."""
    try:
        yield
    except (TokenizerError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # Rust libraries report some damage as a panic, which is no Exception
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise TokenizerError(
            f"{source}: expected a tokenizer, found a damaged file: {reason or type(error).__name__}"
        ) from None
