"""Every error that Ventoux raises for a user. Each message says what was expected, what was found and what to do."""


class VentouxError(Exception):
    """Base of all errors meant for a user; the CLI prints them as one line."""


class VentouxWarning(UserWarning):
    """Something to know that changes no result."""


class ConfigError(VentouxError):
    """A model description has an unknown, missing or contradictory key; the message names file and key."""


class CheckpointError(VentouxError):
    """A checkpoint file is damaged, hostile or incomplete; the message names file, tensor and reason."""


class TokenizerError(VentouxError):
    """A tokenizer file cannot be read, or a model without a tokenizer was given text."""


class ChatError(VentouxError):
    """A conversation cannot be written in the wanted chat format."""


class ConversionError(VentouxError):
    """A checkpoint cannot be written in the wanted layout or number format, or not at the wanted place."""


class DownloadError(VentouxError):
    """A model could not be fetched, or what was fetched is not what was promised."""


class RequestError(VentouxError, ValueError):
    """A generation request has a parameter out of range."""


class GrammarError(RequestError):
    """A JSON schema, regular expression or grammar is malformed, unsupported, too large, or matches no text."""


class PromptTooLongError(RequestError):
    """The prompt and the answer do not fit into the context."""

    def __init__(self, n_prompt_tokens: int, n_ctx: int, max_tokens: int | None = None) -> None:
        """`max_tokens` is what was asked for, None when nothing was."""
        if max_tokens is None:
            text = f", but the context holds {n_ctx}, the answer included; shorten the prompt"
        else:
            text = f" and {max_tokens} more are asked for, but the context holds {n_ctx}; ask for fewer, or shorten it"
        super().__init__(f"the prompt has {n_prompt_tokens} tokens{text}")
        self.n_prompt_tokens = n_prompt_tokens
        self.n_ctx = n_ctx


class PrefixFileError(VentouxError):
    """A saved conversation cannot be written, or its file is damaged or of another model."""


class GenerationError(VentouxError):
    """A token could not be chosen: the model's logits are not numbers, or every token is forbidden."""


class BusyError(VentouxError):
    """As much is being done as may be at once, or the end has come; asking again later may help."""


class OutOfMemoryError(VentouxError, MemoryError):
    """What was asked for is larger than the memory that the system gives."""


class GrammarOverrunError(GenerationError):
    """A text's grammar takes more time or memory than one text may."""


class MissingExtraError(VentouxError, ImportError):
    """A part of the package needs libraries that are not installed, or are too old."""

    def __init__(self, part: str, extra: str, cause: ImportError) -> None:
        super().__init__(f"{part} needs the extra [{extra}]: pip install 'ventoux[{extra}]' ({cause})")


def shown(value: object) -> str:
    """A value from a stranger's file, fit for a one-line message: escaped, cut, and never a nested structure."""
    text = repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."
