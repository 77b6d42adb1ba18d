"""Run Mistral 7B and its relatives on the machine that you have.

    import ventoux

    model = ventoux.load()  # a folder, a .gguf file, an alias or a hub id; nothing is the default model
    print(model.generate("My favourite condiment is", max_tokens=50))

What `ventoux` offers is imported when it is first used, so that `import ventoux` itself costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ventoux.errors import (
    ChatError,
    CheckpointError,
    ConfigError,
    ConversionError,
    DownloadError,
    GenerationError,
    GrammarError,
    MissingExtraError,
    OutOfMemoryError,
    PromptTooLongError,
    RequestError,
    TokenizerError,
    VentouxError,
)

if TYPE_CHECKING:
    from ventoux import chat, tokenizer
    from ventoux.conversion import convert
    from ventoux.engine import Completion, Finished, Token
    from ventoux.loading import load
    from ventoux.model import Mistral

    __version__: str

__all__ = [
    "ChatError",
    "CheckpointError",
    "Completion",
    "ConfigError",
    "ConversionError",
    "DownloadError",
    "Finished",
    "GenerationError",
    "GrammarError",
    "MissingExtraError",
    "Mistral",
    "OutOfMemoryError",
    "PromptTooLongError",
    "RequestError",
    "Token",
    "TokenizerError",
    "VentouxError",
    "__version__",
    "chat",
    "convert",
    "load",
    "tokenizer",
]

_MODULES = ("chat", "tokenizer")
_HOMES = {
    "Completion": "ventoux.engine",
    "Finished": "ventoux.engine",
    "Mistral": "ventoux.model",
    "Token": "ventoux.engine",
    "convert": "ventoux.conversion",
    "load": "ventoux.loading",
}


def __getattr__(name: str) -> Any:
    """Import a name of the public face when it is first asked for (PEP 562)."""
    value: Any
    if name in _MODULES:
        return import_module(f"ventoux.{name}")  # which binds the name by itself
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name == "__version__":
        from importlib.metadata import version

        value = version("ventoux")
    else:
        raise AttributeError(f"module 'ventoux' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
