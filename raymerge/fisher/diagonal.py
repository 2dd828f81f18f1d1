"""The diagonal of the Fisher information of a model, over users and the whole catalogue.

F = 1/N Σ_i Σ_j w_ij (∇_θ log p_θ(v_j | s_i))², with the weights w of an estimator (see weights). Each user costs at
most d backward passes, for any size of catalogue (see factor).
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn

from raymerge.errors import ConfigError
from raymerge.fisher.engine import Engine, Users, default_budget
from raymerge.fisher.weights import FisherConfig
from raymerge.models.recommender import evaluation_mode


def estimate(
    module: nn.Module,
    histories: Tensor,
    *,
    estimator: str = "exact",
    samples: int | None = None,
    targets: Tensor | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int | None = None,
    align: Literal["identity", "rank"] = "rank",
    keys: Tensor | None = None,
    offered: Tensor | None = None,
    skip_frozen: bool = False,
    dtype: torch.dtype | None = None,
    precision: Literal["float32", "bf16"] = "float32",
    memory_bytes: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """Mean over users of the raw Fisher diagonal, by `named_parameters()` name, in the precision of the computation.

    `module` has `embed`, `encode` and `head`; `histories` int64[N, L], padded with 0 on the left; `targets` int64[N],
    the next items (1..V), for estimator `target`. `estimator` is a name in the registry, `samples` its n where it takes
    one. Logits are divided by `temperature`. With `batch_size` B, sums over B users are squared, with items aligned
    across them by `align`; without it, each user and item is squared before any sum. `keys` int64[N] identify users:
    random draws depend only on (seed, key) (default: the row number). `offered` bool[V] marks the items that the
    model chooses among, all if None; the others have probability 0. Parameters that do not reach the logits get 0;
    `skip_frozen` leaves out those with requires_grad off. `dtype` computes in a precision other than the module's; the
    lowest is float32, also without it. `precision` "bf16" computes the products inside a float32 SequenceEncoder in
    bf16, for 4 probes or more: faster where the hardware supports it, with an error of about 1e-3 of a parameter's
    diagonal (up to 5e-3 for a few users).
    `memory_bytes` is each torch thread's budget for working memory, on top of parameters and sums; without it 64 MiB on
    a CPU, a sixteenth of a GPU's. `progress` is called with the number of users just done. The module is in eval mode
    meanwhile and restored afterwards. That of a SequenceEncoder is the same bit for bit for any number of threads.

    Raises ConfigError for invalid settings, InputError for invalid histories, ScoreError if a logit is not finite.
    Source: https://arxiv.org/abs/2307.05476, equation 4.
    """
    config = FisherConfig(estimator, samples, temperature, batch_size, align, precision, seed)
    sums, users = accumulate(
        module,
        histories,
        config=config,
        targets=targets,
        keys=keys,
        offered=offered,
        skip_frozen=skip_frozen,
        dtype=dtype,
        memory_bytes=memory_bytes,
        progress=progress,
    )
    kept = working_dtype(module, dtype)
    return {name: total.div_(users).to(kept) for name, total in sums.items()}


def accumulate(
    module: nn.Module,
    histories: Tensor,
    *,
    config: FisherConfig,
    targets: Tensor | None = None,
    keys: Tensor | None = None,
    offered: Tensor | None = None,
    skip_frozen: bool = False,
    dtype: torch.dtype | None = None,
    memory_bytes: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[dict[str, Tensor], int]:
    """The sum over users behind `estimate`, in float64, and the number of users: shards of users add up.

    Arguments as for `estimate`. With batch_size B, users form groups of B in the order given; the last may be smaller.
    """
    users = Users.of(histories, targets, keys)
    if config.estimator == "target" and targets is None:
        raise ConfigError("estimator 'target' needs targets: the item that followed each history")
    with evaluated(module, dtype) as model:
        budget = default_budget(next(model.parameters()).device) if memory_bytes is None else memory_bytes
        engine = Engine(model, config, skip_frozen, budget, offered)
        for done in engine.run(users):
            if progress is not None:
                progress(done)
        return engine.sums.result(), len(users.histories)


def working_dtype(module: nn.Module, dtype: torch.dtype | None) -> torch.dtype:
    """The precision of the computation: as asked, or that of the parameters; at least float32."""
    given = (parameter.dtype for parameter in module.parameters()) if dtype is None else (dtype,)
    return reduce(torch.promote_types, given, torch.float32)


@contextmanager
def evaluated(module: nn.Module, dtype: torch.dtype | None) -> Iterator[nn.Module]:
    """The module in `evaluation_mode`, or a copy if the precision differs; its flags are restored afterwards."""
    working = working_dtype(module, dtype)
    if any(p.dtype != working for p in module.parameters()):
        module = copy.deepcopy(module).to(working)
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        with evaluation_mode(module):
            yield module
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
