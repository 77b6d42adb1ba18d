"""What transformers calls `cache` since 5.24, and `past_key_values` before: our classes take both, with any version."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from transformers.modeling_outputs import BaseModelOutputWithPast

Forward = TypeVar("Forward", bound=Callable[..., Any])

CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"  # of this version


def takes_cache(forward: Forward) -> Forward:
    """A forward pass with an argument `cache`, which takes it as `past_key_values` too. Raises ValueError for both."""

    @functools.wraps(forward)
    def renamed(*args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        if past_key_values is not None:
            if kwargs.get("cache") is not None:
                raise ValueError("past_key_values is another name of cache; give one of them")
            kwargs["cache"] = past_key_values
        return forward(*args, **kwargs)

    # PEFT looks here for the older name
    signature = inspect.signature(forward)
    *parameters, rest = signature.parameters.values()
    older = inspect.Parameter("past_key_values", inspect.Parameter.KEYWORD_ONLY, default=None)
    renamed.__signature__ = signature.replace(parameters=[*parameters, older, rest])  # type: ignore[attr-defined]
    return renamed  # type: ignore[return-value]
