"""Block formats as pure functions: bytes <-> numbers."""

from ventoux.quant.formats import FORMATS, BlockFormat, dequantize, quantize, row_bytes

__all__ = ["FORMATS", "BlockFormat", "dequantize", "quantize", "row_bytes"]
