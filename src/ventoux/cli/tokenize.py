"""`tokenize`: how a text becomes ids."""

import json

from ventoux.cli.options import counted
from ventoux.model import Mistral


def tokenize(model: Mistral, text: str, *, chat: bool, as_json: bool) -> None:
    tokenizer = model.tokenizer
    if chat:
        ids = model.chat_format.encode([{"role": "user", "content": text}], tokenizer=tokenizer)
    else:
        ids = tokenizer.encode(text, bos=True)
    control = {number: name for name, number in tokenizer.control_tokens().items()}
    raw = [tokenizer.token_bytes(i) for i in ids]
    if as_json:
        pieces = [control.get(i) or piece.decode(errors="backslashreplace") for i, piece in zip(ids, raw, strict=True)]
        print(json.dumps({"ids": ids, "pieces": pieces}, ensure_ascii=False))
        return
    for i, piece in zip(ids, raw, strict=True):
        print(f"{i:>7}  {control.get(i) or quoted(piece)}")
    print(counted(len(ids)))


def quoted(piece: bytes) -> str:
    """Text as 'text'; a part of a character, which is no text, as b'bytes'."""
    try:
        return repr(piece.decode())
    except UnicodeDecodeError:
        return repr(piece)
