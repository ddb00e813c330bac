"""Reduced precision of a pass through a network: matrix products in 16 bits, weights and everything else in 32."""

from typing import Literal

import torch

Precision = Literal["float32", "bfloat16", "float16"]
"""Type of the matrix products; "float32" leaves all as it is."""

AUTOCAST_TYPES: dict[Precision, torch.dtype | None] = {
    "float32": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """PyTorch's autocast to `precision` on `device`, as a context."""
    dtype = AUTOCAST_TYPES[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
