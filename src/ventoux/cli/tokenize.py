"""`tokenize`: how a text becomes ids."""

import json

from ventoux.model import Mistral


def tokenize(model: Mistral, text: str, *, chat: bool, as_json: bool) -> None:
    tokenizer = model.tokenizer
    if chat:
        ids = model.chat_format.encode([{"role": "user", "content": text}], tokenizer=tokenizer)
    else:
        ids = tokenizer.encode(text, bos=True)
    control = {number: name for name, number in tokenizer.control_tokens().items()}
    pieces = [control.get(i) or tokenizer.token_bytes(i).decode(errors="backslashreplace") for i in ids]
    if as_json:
        print(json.dumps({"ids": ids, "pieces": pieces}, ensure_ascii=False))
        return
    for i, piece in zip(ids, pieces, strict=True):
        print(f"{i:>7}  {piece if i in control else repr(piece)}")
    print(f"{len(ids)} tokens")
