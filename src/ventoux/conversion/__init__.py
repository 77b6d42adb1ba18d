"""From any checkpoint to any layout: `ventoux.convert`."""

from ventoux.conversion.writing import Converted, convert, convert_tokenizer

__all__ = ["Converted", "convert", "convert_tokenizer"]
