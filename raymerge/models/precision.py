"""Whether products are made in bf16: where that is faster, if nothing else is asked for."""

from functools import cache
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bf16"]


def in_bf16(precision: Precision, device: str) -> bool:
    """Whether products on a kind of device, such as "cpu", are in bf16; of float32 numbers, others stay as they are."""
    return precision == "bf16" or (precision == "auto" and _multiplies_bf16(device))


@cache
def _multiplies_bf16(device: str) -> bool:
    """Whether products are faster in bf16 there: on a GPU or CPU that has instructions for them."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if device != "cpu":
        return False
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
