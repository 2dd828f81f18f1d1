"""One way to compute the exact Fisher diagonal, in turns: fisher.py raymerge|vmap|naive ITEMS THREADS."""

import sys
from pathlib import Path

import torch
from fisher_vmap import diagonal_sum
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from turns import Turns

from raymerge.fisher import FisherConfig, accumulate
from raymerge.models.encoder import EncoderConfig, SequenceEncoder

sys.path.append(str(Path(__file__).parents[2]))
from oracles_fisher import log_probabilities, squared_gradient

USERS = 256  # per call of the engine
VMAP_USERS = 8  # per chunk; more do not fit the cache


def model_and_histories(items: int) -> tuple[SequenceEncoder, Tensor]:
    """An encoder whose softmax has many likely items, so that all d probes count, and full histories [USERS, 50]."""
    torch.manual_seed(0)
    module = SequenceEncoder(items, EncoderConfig(attention="causal")).eval()
    module.item_embedding.weight.data[1:].normal_(std=0.1)
    return module, torch.stack([torch.randperm(items)[:50] + 1 for _ in range(USERS)])


def engine(module: SequenceEncoder, histories: Tensor, turns: Turns) -> None:
    while True:
        accumulate(module, histories, config=FisherConfig("exact"))
        turns.done(users=len(histories))


def vmapped(module: SequenceEncoder, histories: Tensor, turns: Turns) -> None:
    with sdpa_kernel(SDPBackend.MATH):  # vmap does not support the others
        check(module, histories[:2])
        while True:
            for users in histories.split(VMAP_USERS):
                diagonal_sum(module, users)
                turns.done(users=len(users))


def check(module: SequenceEncoder, histories: Tensor) -> None:
    """Raise AssertionError unless it computes what the engine does."""
    sums, _ = accumulate(module, histories, config=FisherConfig("exact"))
    for name, found in diagonal_sum(module, histories).items():
        found, wanted = found.detach(), sums[name].float()
        assert float((found - wanted).abs().max()) <= 1e-3 * float(wanted.abs().max()), name


def naive(module: SequenceEncoder, histories: Tensor, turns: Turns) -> None:
    """The definition: one user after the other, one backward pass per item."""
    total = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    while True:
        for history in histories:
            log_p = log_probabilities(module, history[None])[0]
            for item in range(module.num_items):
                for name, square in squared_gradient(module, log_p[item]).items():
                    total[name] += log_p[item].exp().item() * square
                turns.done(users=1 / module.num_items)


WAYS = {"raymerge": engine, "vmap": vmapped, "naive": naive}

if __name__ == "__main__":
    way, items, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    turns = Turns()
    torch.set_num_threads(threads)
    WAYS[way](*model_and_histories(items), turns)
