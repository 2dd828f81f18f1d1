"""The diagonal of the Fisher information of a model, over users and the whole catalogue.

F = 1/N Σ_i Σ_j w_ij (∇_θ log p_θ(v_j | s_i))², with the weights w of an estimator (see weights). Each user costs at
most d backward passes, whatever the catalogue (see factor).
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from raymerge.errors import ConfigError, InputError
from raymerge.fisher.draws import streams
from raymerge.fisher.generic import AutogradBackward
from raymerge.fisher.inputs import InputSide
from raymerge.fisher.model import HeadNames, input_rows, parts_of
from raymerge.fisher.output import add_output, replace_output_of_rows
from raymerge.fisher.rows import InputRows
from raymerge.fisher.scores import TILE, Head, Scores
from raymerge.fisher.sums import SquareSums
from raymerge.fisher.transformer import EncoderBackward
from raymerge.fisher.weights import ESTIMATORS, FisherConfig, Request
from raymerge.models.encoder import SequenceEncoder

MEMORY_BYTES = 64 << 20
"""Default budget of what is alive at a time beside the parameters and sums; on a CPU small chunks stay in cache."""

MOST_USERS = 256


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
    skip_frozen: bool = False,
    dtype: torch.dtype | None = None,
    memory_bytes: int = MEMORY_BYTES,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """Mean over users of the Fisher diagonal, raw, by `named_parameters()` name, in the precision computed in.

    `module` has `embed`, `encode` and `head`; `histories` int64[N, L], padded with 0 on the left; `targets` int64[N],
    the next items (1..V), for estimator `target`. `keys` int64[N] identify users: random draws depend on (seed, key)
    alone (default: the row number). Parameters that do not reach the logits get 0; `skip_frozen` leaves out those with
    requires_grad off. `dtype` computes in another precision than the module's. `progress` gets the number of users
    just done. The module is in eval mode meanwhile, and as it was afterwards.

    Raises ConfigError for settings that cannot work, InputError for histories that cannot, ScoreError if a logit is
    not finite. Squares are per user and item before any sum (https://arxiv.org/abs/2307.05476, equation 4).
    """
    config = FisherConfig(estimator, samples, temperature, batch_size, align, seed)
    sums, users = accumulate(
        module,
        histories,
        config=config,
        targets=targets,
        keys=keys,
        skip_frozen=skip_frozen,
        dtype=dtype,
        memory_bytes=memory_bytes,
        progress=progress,
    )
    precision = dtype or next(module.parameters()).dtype
    return {name: total.div_(users).to(precision) for name, total in sums.items()}


def accumulate(
    module: nn.Module,
    histories: Tensor,
    *,
    config: FisherConfig,
    targets: Tensor | None = None,
    keys: Tensor | None = None,
    skip_frozen: bool = False,
    dtype: torch.dtype | None = None,
    memory_bytes: int = MEMORY_BYTES,
    progress: Callable[[int], None] | None = None,
) -> tuple[dict[str, Tensor], int]:
    """The sum over users behind `estimate`, in float64, and the number of users: shards of users add up.

    Arguments as for `estimate`. With batch_size B, users form groups of B in the order given; the last may be smaller.
    """
    users = Users.of(histories, targets, keys)
    if config.estimator == "target" and targets is None:
        raise ConfigError("estimator 'target' needs targets: the item that followed each history")
    with evaluated(module, dtype) as model, torch.no_grad():
        engine = Engine(model, config, skip_frozen, memory_bytes)
        for groups in engine.batches(users, config.batch_size or 1):
            engine.add(users.take(groups.flatten()), groups.shape[1])
            if progress is not None:
                progress(groups.numel())
        return engine.sums.result(), len(users.histories)


@dataclass(frozen=True)
class Users:
    """Histories int64[N, L], next items int64[N] or None, and keys int64[N]."""

    histories: Tensor
    targets: Tensor | None
    keys: Tensor

    @classmethod
    def of(cls, histories: Tensor, targets: Tensor | None, keys: Tensor | None) -> "Users":
        """Checked: raises InputError for shapes that do not fit."""
        if histories.ndim != 2 or not histories.numel():
            raise InputError(f"histories must be int64[N, L] with N, L >= 1, got shape {tuple(histories.shape)}")
        for name, values in (("targets", targets), ("keys", keys)):
            if values is not None and values.shape != histories.shape[:1]:
                raise InputError(f"{name} must be int64[{len(histories)}], one a history, got {tuple(values.shape)}")
        return cls(histories, targets, torch.arange(len(histories)) if keys is None else keys)

    def take(self, index: Tensor) -> "Users":
        """Those at an index."""
        targets = None if self.targets is None else self.targets[index]
        return Users(self.histories[index], targets, self.keys[index])


@contextmanager
def evaluated(module: nn.Module, dtype: torch.dtype | None) -> Iterator[nn.Module]:
    """The module in eval mode (all submodules' modes and requires_grad flags restored), or a copy in another precision."""
    if dtype is not None and any(p.dtype != dtype for p in module.parameters()):
        yield copy.deepcopy(module).to(dtype).eval()
        return
    modes = {part: part.training for part in module.modules()}
    flags = {parameter: parameter.requires_grad for parameter in module.parameters()}
    try:
        yield module.eval()
    finally:
        for part, training in modes.items():
            part.training = training
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


class Engine:
    """One model and estimator: adds up squared gradients batch by batch."""

    def __init__(self, module: nn.Module, config: FisherConfig, skip_frozen: bool, memory_bytes: int) -> None:
        self.module, self.model = module, parts_of(module)
        self.config = config
        self.memory_bytes = memory_bytes
        parameters = {name: p for name, p in module.named_parameters() if p.requires_grad or not skip_frozen}
        for parameter in parameters.values():
            parameter.requires_grad_()
        with torch.enable_grad():  # so that a computed weight shows what it was computed from
            weight, bias, tied = self.model.head()
        self.head = Head(weight.detach(), None if bias is None else bias.detach(), config.temperature)
        config.check_model(items=self.head.items, dim=weight.shape[1])
        self.names = HeadNames.of(module, weight, bias, tied)
        self.sums = SquareSums(parameters)
        self.backward: EncoderBackward | AutogradBackward
        if type(module) is SequenceEncoder:  # a subclass may compute something else
            self.backward = EncoderBackward(module, self.sums, memory_bytes)
        else:
            self.backward = AutogradBackward(module, self.sums)

    def batches(self, users: Users, size: int) -> Iterator[Tensor]:
        """Rows of users, as int64[G, S] groups; groups of like length together where padding can be cut off."""
        count = len(users.histories)
        rows = torch.arange(count)
        whole = count // size * size
        for groups in (rows[:whole].view(-1, size), rows[whole:][None]):
            if not groups.numel():
                continue
            if self.backward.skips_padding:
                lengths = _lengths(users.histories)[groups].amax(1)
                groups = groups[lengths.argsort(stable=True)]
            yield from groups.split(max(1, self._users_at_a_time(users.histories.shape[1], size) // size))

    def _users_at_a_time(self, length: int, size: int) -> int:
        """Users whose probabilities, chosen items and probes fit the budget (the backward pass cuts its own chunks)."""
        dim, chosen = self.head.weight.shape[1], self.config.samples or 0
        if self.config.estimator == "hutchinson":
            chosen *= TILE // dim
        floats = 8 * TILE + chosen * (4 * dim + 2 * size * length) + 4 * dim * (length + dim)
        return max(1, min(MOST_USERS, self.memory_bytes // (floats * self.head.weight.element_size())))

    def add(self, users: Users, size: int) -> None:
        """Add groups of `size` users each."""
        device = self.head.weight.device
        histories, keys = users.histories.to(device), users.keys.to(device)
        if self.backward.skips_padding:
            histories = histories[:, -max(1, int(_lengths(histories).max())) :]
        hidden = self.model.encode(self.model.embed(histories), histories).unflatten(0, (-1, size))
        scores = Scores(self.head, hidden, streams(self.config.seed, keys).view(-1, size))
        positions = input_rows(self.module, histories)
        rows = InputRows.of(positions.reshape(len(hidden), -1))
        columns = self.names.columns(rows.rows, self.head.items)
        targets = None if users.targets is None else self._targets(users.targets.to(device), size)
        request = Request(self.config.samples or 1, self.config.align, targets, columns)
        probes = ESTIMATORS[self.config.estimator].build(scores, request)
        add_output(self.sums, scores, self.names, probes.choice)
        if not probes.complete and columns is not None:
            replace_output_of_rows(self.sums, scores, self.names, probes, columns)
        read = self.backward.table_read(histories, positions)
        temperature = self.config.temperature
        inputs = InputSide(self.sums, self.names, read, rows, probes.mixing, hidden / temperature)
        self.backward.add(histories, probes.cotangents / temperature, inputs)

    def _targets(self, targets: Tensor, size: int) -> Tensor:
        """Columns of the next items: int64[G, S]."""
        low, high = int(targets.min()), int(targets.max())
        if low < 1 or high > self.head.items:
            raise InputError(f"targets must lie in 1..{self.head.items}, found {low if low < 1 else high}")
        return (targets - 1).view(-1, size)


def _lengths(histories: Tensor) -> Tensor:
    """Columns from the first item on: int64[N, L] → int64[N]."""
    real = (histories != 0).int()
    return (histories.shape[1] - real.argmax(dim=1)) * real.amax(dim=1)
