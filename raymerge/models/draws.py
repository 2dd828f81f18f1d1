"""Random numbers that are a pure function of (stream, counters): see `raymerge.splitmix`. One hash for each counter."""

import torch
from torch import Tensor

from raymerge.splitmix import GAMMA, Stream, mix_, unit


def hashed(stream: Stream, *counters: Tensor | int) -> Tensor:
    """One 64-bit word for each combination of the broadcast int64 counters: int64."""
    device = next((counter.device for counter in counters if isinstance(counter, Tensor)), None)
    state = torch.full((), int(stream), dtype=torch.int64, device=device)  # made there: a copy would wait
    for counter in counters:
        state = mix_((state ^ counter) + GAMMA)
    return state


def uniform(stream: Stream, *counters: Tensor | int) -> Tensor:
    """Numbers in [0, 1), one for each combination of the broadcast int64 counters: float64.

    >>> uniform(Stream.VIEW, torch.tensor([[7], [8]]), torch.arange(3)).shape
    torch.Size([2, 3])
    """
    return unit(hashed(stream, *counters))
