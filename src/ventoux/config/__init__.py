"""What a model is, in one frozen dataclass, whatever file described it.

`from_params` reads mistral-src's params.json, `from_huggingface` transformers' config.json (versions 4 and 5), and
`from_gguf` the metadata of a GGUF file. All are strict: a key that is unknown, or that asks for something this model
cannot do, is an error that names the file and the key. Silence is how windows get lost. `to_params`, `to_huggingface`
and `to_gguf` write the same descriptions.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ventoux.config.model import ModelConfig

if TYPE_CHECKING:
    from ventoux.config.gguf import from_gguf, to_gguf
    from ventoux.config.huggingface import from_huggingface, to_generation, to_huggingface
    from ventoux.config.params import from_params, to_params

__all__ = [
    "ModelConfig",
    "from_gguf",
    "from_huggingface",
    "from_params",
    "to_generation",
    "to_gguf",
    "to_huggingface",
    "to_params",
]

_HOMES = {
    "from_gguf": "gguf",
    "from_huggingface": "huggingface",
    "from_params": "params",
    "to_generation": "huggingface",
    "to_gguf": "gguf",
    "to_huggingface": "huggingface",
    "to_params": "params",
}


def __getattr__(name: str) -> Any:
    """Import the reader of one kind of file when it is first asked for: a start needs one of them."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ventoux.config' has no attribute {name!r}")
    return getattr(import_module(f"ventoux.config.{_HOMES[name]}"), name)
