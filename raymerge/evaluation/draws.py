"""Random numbers that are a pure function of (seed, stream, counters): see `raymerge.splitmix`.

One hash for seed and stream together, and one for each counter.
"""

import math

import torch
from torch import Tensor

from raymerge.splitmix import GAMMA, Stream, mix_, shifted, signed

# P(X <= x) of a Poisson variable of mean 1, up to the last x that a 52-bit uniform number can reach.
POISSON_CDF = torch.tensor(
    [math.fsum(math.exp(-1) / math.factorial(i) for i in range(x + 1)) for x in range(18)], dtype=torch.float64
)


def open_uniform(seed: int, stream: Stream, *counters: Tensor) -> Tensor:
    """Numbers in the open interval (0, 1), one for each combination of the broadcast int64 counters: float64.

    >>> open_uniform(0, Stream.RANKED_NEGATIVES, torch.tensor([[7], [8]]), torch.arange(3)).shape
    torch.Size([2, 3])
    """
    state = mix_(torch.tensor(signed(seed)) ^ signed(GAMMA * stream))
    for counter in counters:
        state = mix_((state.to(counter.device) ^ counter) + GAMMA)
    middle_of_cell = shifted(state, 12).to(torch.float64).add_(0.5)
    return middle_of_cell.mul_(2.0**-52)


def poisson(seed: int, stream: Stream, *counters: Tensor) -> Tensor:
    """Poisson variables of mean 1, by inversion, one for each combination of the broadcast counters: float64."""
    numbers = open_uniform(seed, stream, *counters)
    return torch.bucketize(numbers, POISSON_CDF.to(numbers), out_int32=True).to(torch.float64)
