"""Models and histories of the hard kind, small enough for brute force."""

import torch
from torch import Tensor, nn

from raymerge.models.encoder import EncoderConfig, SequenceEncoder

ITEMS = 9


def encoder(seed: int = 0, *, items: int = ITEMS, **settings: object) -> SequenceEncoder:
    """A float64 encoder with weights large enough that every non-linearity matters, with repeats unless told."""
    shape: dict[str, object] = {
        "dim": 6,
        "heads": 2,
        "feed_forward": 5,
        "max_length": 5,
        "blocks": 2,
        "repeat_direction": True,
    }
    module = SequenceEncoder(items, EncoderConfig(**{**shape, **settings})).double()  # type: ignore[arg-type]
    return randomised(module, seed)


def randomised(module: nn.Module, seed: int, scale: float = 0.5) -> nn.Module:
    """The module with normal parameters, the padding rows of its embeddings 0."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    for part in module.modules():
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            part.weight.data[part.padding_idx] = 0
    return module.eval()


def histories() -> Tensor:
    """One item; repeated items; a full history; padding and a repeat; an item that stands everywhere."""
    return torch.tensor([[0, 0, 0, 0, 3], [0, 1, 2, 1, 2], [1, 2, 3, 4, 5], [0, 9, 9, 4, 9], [7, 7, 7, 7, 7]])


class Recurrent(nn.Module):
    """GRU4Rec with a tied or an untied head, a bias or none; with `positions`, its embedded input is not plain rows.

    `repeats` gives it a direction of repeats.
    """

    def __init__(
        self,
        *,
        tied: bool,
        bias: bool,
        rows: bool = True,
        positions: bool = False,
        repeats: bool = False,
        items: int = ITEMS,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(items + 1, 4, padding_idx=0)
        self.gru = nn.GRU(4, 4, batch_first=True)
        self.output = None if tied else nn.Linear(4, items, bias=False)
        self.bias = nn.Parameter(torch.zeros(items)) if bias else None
        self.positions = nn.Parameter(torch.zeros(5, 4)) if positions else None
        self.repeat_direction = nn.Parameter(torch.zeros(4)) if repeats else None
        self.unused = nn.Linear(2, 3)
        if rows:
            self.input_rows = lambda histories: histories

    def embed(self, histories: Tensor) -> Tensor:
        """int64[B, L] → [B, L, d]."""
        x = self.embedding(histories)
        return x if self.positions is None else x + self.positions[-histories.shape[1] :]

    def encode(self, x: Tensor, histories: Tensor) -> Tensor:
        """[B, L, d] → [B, d]."""
        return self.gru(x * (histories != 0)[..., None])[0][:, -1]

    def head(self) -> tuple[Tensor, Tensor | None, str | None]:
        """Output weights, bias, and the tied embedding's name."""
        if self.output is None:
            return self.embedding.weight[1:], self.bias, "embedding.weight"
        return self.output.weight, self.bias, None


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    """Equal names, and max|error| ≤ tolerance · max|expected| for each tensor (1e-25: exact zeros but for rounding)."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error, size = (found[name] - value).abs().max().item(), value.abs().max().item()
        assert error <= tolerance * size + 1e-25, f"{name}: error {error:.2e} of {size:.2e}"
