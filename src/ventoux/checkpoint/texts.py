"""The files of a checkpoint that concern its text: the tokenizer, and the chat template."""

import re
from pathlib import Path

from ventoux.checkpoint import strict_json
from ventoux.checkpoint.reading import Checkpoint
from ventoux.errors import CheckpointError


def tokenizer_file(checkpoint: Checkpoint) -> Path | None:
    """The file that holds the tokenizer; None when there is none.

    A GGUF file holds its own. In a folder: tokenizer.model.vN, tokenizer.model, tekken.json, tokenizer.json; but
    tokenizer.json first when added_tokens.json says that the tokenizer has grown since tokenizer.model was made.
    """
    if checkpoint.kind == "gguf":
        return checkpoint.path if "tokenizer.ggml.tokens" in checkpoint.metadata else None
    folder = checkpoint.path
    versions = sorted(
        (file for file in folder.glob("tokenizer.model.v*") if re.fullmatch(r"\.v\d+(m\d+)?", file.suffix)),
        key=lambda file: [int(number) for number in re.findall(r"\d+", file.suffix)],
        reverse=True,
    )
    grown = [folder / "tokenizer.json"] if (folder / "added_tokens.json").exists() else []
    plain = [folder / name for name in ("tokenizer.model", "tekken.json", "tokenizer.json")]
    return next((file for file in (*grown, *versions, *plain) if file.exists()), None)


def chat_template(checkpoint: Checkpoint) -> str | None:
    """The jinja template that came with the model, unread; None when there is none.

    GGUF's tokenizer.chat_template; else chat_template.jinja, else the one of tokenizer_config.json (the one named
    "default", where it has several).
    """
    if checkpoint.kind == "gguf":
        template = checkpoint.metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) else None
    jinja, settings = checkpoint.path / "chat_template.jinja", checkpoint.path / "tokenizer_config.json"
    if jinja.exists():
        try:
            return jinja.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{jinja}: cannot be read: {error}") from error
    template = strict_json.read(settings).get("chat_template") if settings.exists() else None
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    return template if isinstance(template, str) else None
