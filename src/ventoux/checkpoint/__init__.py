"""Checkpoints: raw, Hugging Face's and GGUF's, read as views of their files."""

from ventoux.checkpoint.reading import Checkpoint, read
from ventoux.checkpoint.tensor import Tensor

__all__ = ["Checkpoint", "Tensor", "read"]
