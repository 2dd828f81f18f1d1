"""Squared gradients of any module with `embed` and `encode`, by autograd: one backward pass per group and probe."""

import torch
from torch import Tensor, nn

from raymerge.errors import ConfigError, InputError
from raymerge.fisher.inputs import InputSide
from raymerge.fisher.model import as_recommender
from raymerge.fisher.sums import SquareSums


class AutogradBackward:
    """Adds Σ_i (Jᵀ q_i)² of each group.

    Squares go straight to the sums. Where the embedded input consists of rows of a table, the input is differentiated
    instead of the table, so that no gradient is as large as the catalogue; otherwise all of `embed` is differentiated,
    and a table in it costs its full size per probe.
    """

    skips_padding = False
    """A module may do anything with padded columns."""

    threaded = False
    """A module may keep state between calls, and a gradient may be large."""

    def __init__(self, module: nn.Module, sums: SquareSums) -> None:
        self.model = as_recommender(module)
        self.parameters = {name: p for name, p in module.named_parameters() if sums.wants(name)}
        self.sums = sums
        self._embeds: list[str] | None = None

    def table_read(self, histories: Tensor, rows: Tensor) -> str | None:
        """Name of the parameter whose rows int64[B, L'] are the embedded input, padding aside; None if none is."""
        with torch.enable_grad():
            x = self.model.embed(histories)
            if self._embeds is None:
                self._embeds = self._reached(x)
        if len(self._embeds) != 1 or rows.shape != x.shape[:2]:
            return None
        table, real = self.parameters[self._embeds[0]].detach(), rows != 0
        fits = table.ndim == 2 and table.shape[1] == x.shape[2] and int(rows.max()) < len(table)
        return self._embeds[0] if fits and torch.equal(table[rows[real]], x.detach()[real]) else None

    def _reached(self, x: Tensor) -> list[str]:
        """Names of the parameters that the embedded input depends on."""
        if not x.requires_grad:
            return []
        gradients = torch.autograd.grad(x.sum(), list(self.parameters.values()), allow_unused=True)
        return [name for name, g in zip(self.parameters, gradients, strict=True) if g is not None]

    def add(self, histories: Tensor, cotangents: Tensor, inputs: InputSide) -> None:
        """Add the squares for histories int64[G·S, L] with all their cotangents of h [G, P, S, d].

        Raises ConfigError for a head that is not tied as it says, InputError for rows read that `input_rows` lacks.
        """
        if inputs.head.tied and inputs.wanted and inputs.table not in (self._embeds or []):
            raise ConfigError(
                f"head() says that its weight {inputs.table!r} is tied to the input, but embed() does not use it: "
                "return None as the third value"
            )
        size = cotangents.shape[2]
        for group, probes in enumerate(cotangents):
            users = histories[group * size : (group + 1) * size]
            with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):  # cuDNN's GRU: training mode only
                self._add_group(users, probes, inputs, slice(group, group + 1))

    def _add_group(self, users: Tensor, probes: Tensor, inputs: InputSide, group: slice) -> None:
        x = self.model.embed(users)
        if inputs.read is not None:
            x = x.detach().requires_grad_()
        hidden = self.model.encode(x, users)
        if not hidden.requires_grad:
            return
        names, wanted = list(self.parameters), list(self.parameters.values())
        positions, table = [], []
        for probe in probes:
            found = torch.autograd.grad(
                hidden, [*wanted, x] if inputs.read else wanted, probe, retain_graph=True, allow_unused=True
            )
            for name, gradient in zip(names, found[: len(names)], strict=True):
                if gradient is not None and name == inputs.table:
                    table.append(gradient)
                elif gradient is not None:
                    self.sums.add(name, gradient.square())
            if inputs.read:
                positions.append(torch.zeros_like(x) if found[-1] is None else found[-1])
        self._add_table(positions, table, inputs, group)

    def _add_table(self, positions: list[Tensor], table: list[Tensor], inputs: InputSide, group: slice) -> None:
        """From each probe's gradients of the input positions [S, L', d] and of the whole table, if any."""
        rows = inputs.rows.part(group)
        gradients = [rows.add_up(torch.stack([g.flatten(0, 1) for g in positions], dim=1)[None])] if positions else []
        if table:
            gradients.append(torch.stack([g[rows.rows[0]] for g in table], dim=1)[None])
            for gradient in table:
                gradient[rows.rows[0]] = 0  # rows that are read get their output part before they are squared
                if inputs.head.tied and bool(gradient[inputs.head.scored].any()):
                    raise InputError(
                        f"the model reads rows of {inputs.table!r} that are not at the histories' indices: give it "
                        "input_rows(histories), the row at each position"
                    )
                self.sums.add(str(inputs.table), gradient.square())
        if gradients and inputs.wanted:
            inputs.add(inputs.squares(torch.stack(gradients).sum(0), group, slice(None)), group)
