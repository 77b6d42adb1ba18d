"""What every tokenizer can do, whatever file it came from."""

from collections.abc import Sequence
from typing import Protocol


class StreamDecoder(Protocol):
    """Ids in one by one, text out as soon as it is certain."""

    def push(self, token_id: int) -> str:
        """Text that this id makes certain; "" while a character is unfinished."""
        ...

    def finish(self) -> str:
        """What was held back, with bytes that never became a character as U+FFFD."""
        ...


class Tokenizer(Protocol):
    """Text <-> ids. Plain text never turns into control ids: `encode("<s>")` is three characters of text."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eos_id(self) -> int | None: ...

    @property
    def end_ids(self) -> frozenset[int]:
        """Every id that ends a text or an answer: the EOS, and control tokens known by their names for it."""
        ...

    @property
    def version(self) -> str | None:
        """Mistral's name of the tokenizer when the file tells: "v1", "v2", "v3", "v7"; None for other models."""
        ...

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, control tokens left out."""
        ...

    def stream(self, after: Sequence[int] = ()) -> StreamDecoder:
        """A decoder whose pieces, joined, are what `decode(after + ids)` adds to `decode(after)`."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The raw bytes of one token, b"" for a control token."""
        ...

    def control_id(self, piece: str) -> int | None:
        """Id of a control token by its name ("[INST]", "<|im_start|>"), None when there is none."""
        ...

    def control_tokens(self) -> dict[str, int]:
        """All control tokens by name."""
        ...
