"""One model and estimator over many users: batches, their probes, and where the squared gradients go."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raymerge.errors import InputError
from raymerge.fisher.draws import streams
from raymerge.fisher.factor import Probes
from raymerge.fisher.generic import AutogradBackward
from raymerge.fisher.inputs import InputSide
from raymerge.fisher.model import HeadNames, as_recommender
from raymerge.fisher.output import add_output, add_repeat_direction, replace_output_of_rows
from raymerge.fisher.rows import InputRows
from raymerge.fisher.scores import TILE, Head, Scores
from raymerge.fisher.sums import Journal, SquareSums
from raymerge.fisher.threads import in_order
from raymerge.fisher.transformer import EncoderBackward
from raymerge.fisher.weights import ESTIMATORS, FisherConfig, Request
from raymerge.models.encoder import SequenceEncoder
from raymerge.models.repeats import distinct_columns, input_rows, repeat_direction

MEMORY_BYTES = 64 << 20
"""Budget on a CPU, where larger chunks do not stay in the cache."""

GPU_MEMORY_SHARE = 1 / 16
"""Budget on a GPU: of its total memory, not of what is free, so that sums do not depend on other work there."""

MOST_USERS = 64
"""Users per batch on a CPU, a thread's unit of work."""

NOT_OFFERED = -1e9
"""Logit of an item that is not on offer: its probability is 0 next to any other's."""


def default_budget(device: torch.device) -> int:
    """Bytes of working memory, on top of parameters and sums, that suit a device."""
    if device.type != "cuda":
        return MEMORY_BYTES
    return int(GPU_MEMORY_SHARE * torch.cuda.get_device_properties(device).total_memory)


@dataclass(frozen=True)
class Users:
    """Histories int64[N, L], next items int64[N] or None, and keys int64[N]."""

    histories: Tensor
    targets: Tensor | None
    keys: Tensor

    @classmethod
    def of(cls, histories: Tensor, targets: Tensor | None, keys: Tensor | None) -> "Users":
        """The checked users; raises InputError for shapes that do not match."""
        if histories.ndim != 2 or not histories.numel():
            raise InputError(f"histories must be int64[N, L] with N, L >= 1, got shape {tuple(histories.shape)}")
        for name, values in (("targets", targets), ("keys", keys)):
            if values is not None and values.shape != histories.shape[:1]:
                raise InputError(f"{name} must be int64[{len(histories)}], one per history, got {tuple(values.shape)}")
        return cls(histories, targets, torch.arange(len(histories)) if keys is None else keys)

    def take(self, index: Tensor) -> "Users":
        """The users at an index."""
        targets = None if self.targets is None else self.targets[index]
        return Users(self.histories[index], targets, self.keys[index])


class Engine:
    """One model and estimator: adds up squared gradients batch by batch."""

    def __init__(
        self,
        module: nn.Module,
        config: FisherConfig,
        skip_frozen: bool,
        memory_bytes: int,
        offered: Tensor | None = None,
    ) -> None:
        self.module, self.model = module, as_recommender(module)
        self.config = config
        self.memory_bytes = memory_bytes
        parameters = {name: p for name, p in module.named_parameters() if p.requires_grad or not skip_frozen}
        for parameter in parameters.values():
            parameter.requires_grad_()
        with torch.enable_grad():  # so that a computed weight carries its graph
            weight, bias, tied = self.model.head()
            direction = repeat_direction(module)
        offered = None if offered is None else offered.to(weight.device)
        head = weight.detach(), _restricted(weight, bias, offered)
        self.head = Head(*head, config.temperature, offered, None if direction is None else direction.detach())
        config.check_model(items=self.head.choices, dim=weight.shape[1])
        self.names = HeadNames.of(module, weight, bias, tied, direction)
        self.sums = SquareSums(parameters)
        self.backward: EncoderBackward | AutogradBackward
        if type(module) is SequenceEncoder:  # a subclass may compute something else
            self.backward = EncoderBackward(module, memory_bytes, config.precision == "bf16")
        else:
            self.backward = AutogradBackward(module, self.sums)

    def run(self, users: Users) -> Iterator[int]:
        """Add all users, batch by batch; yields the number of users in each batch as it completes."""
        batches = self._batches(users)
        threaded = self.backward.threaded and self.head.weight.device.type == "cpu"
        for batch in in_order(self._work, batches) if threaded else map(self._work, batches):
            self._take(batch)
            yield len(batch.scores.flat)

    def _batches(self, users: Users) -> Iterator[tuple[Users, int]]:
        """Users in groups, with the size of the groups; sorted by length where padding can be cut off."""
        size = self.config.batch_size or 1
        rows = torch.arange(len(users.histories))
        whole = len(rows) // size * size
        for groups in (rows[:whole].view(-1, size), rows[whole:][None]):
            if not groups.numel():
                continue
            if self.backward.skips_padding:
                groups = groups[_lengths(users.histories).cpu()[groups].amax(1).argsort(stable=True)]
            many = max(1, self._users_at_a_time(users.histories.shape[1]) // size)
            for some in groups.split(many):
                yield users.take(some.flatten()), groups.shape[1]

    def _users_at_a_time(self, length: int) -> int:
        """Users whose probabilities, chosen items and probes fit the budget (the backward pass chunks its own work)."""
        dim, chosen, size = self.head.weight.shape[1], self.config.samples or 0, self.config.batch_size or 1
        if ESTIMATORS[self.config.estimator].signs:
            chosen *= TILE // dim
        floats = 8 * TILE + chosen * (4 * dim + 2 * size * length) + 4 * dim * (length + dim)
        fit = self.memory_bytes // (floats * self.head.weight.element_size())
        return max(1, min(MOST_USERS, fit) if self.head.weight.device.type == "cpu" else fit)

    @torch.no_grad()
    def _work(self, batch: tuple[Users, int]) -> "Batch":
        """All of a batch except its output side, collected in a journal since other threads may be working too."""
        users, size = batch
        histories = users.histories.to(self.head.weight.device)
        if self.backward.skips_padding:
            histories = histories[:, -max(1, int(_lengths(histories).max())) :]
        hidden = self.model.encode(self.model.embed(histories), histories).unflatten(0, (-1, size))
        keys = users.keys.to(histories.device).view(-1, size)
        positions = input_rows(self.module, histories)
        had = None if self.head.repeat_direction is None else distinct_columns(positions, self.head.items)
        scores = Scores(self.head, hidden, streams(self.config.seed, keys.flatten()).view(-1, size), had)
        rows = InputRows.of(positions.reshape(len(hidden), -1))
        columns = self.names.columns(rows.rows)
        request = Request(self.config.samples or 1, self.config.align, self._targets(users, size), columns)
        probes = ESTIMATORS[self.config.estimator].build(scores, request)
        journal = Journal(self.sums)
        read = self.backward.table_read(histories, positions)
        temperature = self.config.temperature
        inputs = InputSide(journal, self.names, read, rows, probes.mixing, hidden / temperature)
        self.backward.add(histories, probes.cotangents / temperature, inputs)
        add_repeat_direction(journal, scores, self.names, probes.choice)
        return Batch(scores, probes, columns, journal)

    def _take(self, batch: "Batch") -> None:
        """Add a batch to the sums."""
        add_output(self.sums, batch.scores, self.names, batch.probes.choice)
        if not batch.probes.complete and batch.columns is not None:
            replace_output_of_rows(self.sums, batch.scores, self.names, batch.probes, batch.columns)
        batch.journal.hand_on()

    def _targets(self, users: Users, size: int) -> Tensor | None:
        """Columns of the next items: int64[G, S]."""
        if users.targets is None:
            return None
        low, high = int(users.targets.min()), int(users.targets.max())
        if low < 1 or high > self.head.items:
            raise InputError(f"targets must be in 1..{self.head.items}, found {low if low < 1 else high}")
        return (users.targets - 1).view(-1, size).to(self.head.weight.device)


@dataclass(frozen=True)
class Batch:
    """The result of a batch: its output side is still to be added, the rest is in the journal."""

    scores: Scores
    probes: Probes
    columns: Tensor | None
    journal: Journal


def _restricted(weight: Tensor, bias: Tensor | None, offered: Tensor | None) -> Tensor | None:
    """The output bias [V] that gives items not in `offered` bool[V] no probability; all are offered if None."""
    if offered is None:
        return None if bias is None else bias.detach()
    if offered.shape != weight.shape[:1] or not bool(offered.any()):
        raise InputError(
            f"offered must be bool[V] for V = {len(weight)} items, at least one of them true, got "
            f"{int(offered.sum())} true of {len(offered)}"
        )
    whole = weight.new_zeros(len(weight)) if bias is None else bias.detach()
    return whole.masked_fill(~offered, NOT_OFFERED)


def _lengths(histories: Tensor) -> Tensor:
    """Columns from the first item on: int64[N, L] → int64[N]."""
    real = (histories != 0).int()
    return (histories.shape[1] - real.argmax(dim=1)) * real.amax(dim=1)
