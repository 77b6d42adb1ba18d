"""Checkpoints: raw, Hugging Face's and GGUF's, read as views of their files."""

from ventoux.checkpoint.reading import Checkpoint, read
from ventoux.checkpoint.tensor import Tensor
from ventoux.checkpoint.texts import chat_template, tokenizer_file

__all__ = ["Checkpoint", "Tensor", "chat_template", "read", "tokenizer_file"]
