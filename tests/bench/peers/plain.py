"""The obvious implementation: torch's own layers, and cross-entropy over all items at the target positions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LENGTH, RATE = 50, 0.2


class PlainEncoder(nn.Module):
    """Two blocks of d 64, bidirectional or causal."""

    def __init__(self, items: int, causal: bool) -> None:
        super().__init__()
        self.items, self.positions = nn.Embedding(items + 2, 64, padding_idx=0), nn.Embedding(LENGTH, 64)
        layer = nn.TransformerEncoderLayer(64, 2, 256, 0.2, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.dropout, self.norm, self.bias = nn.Dropout(0.2), nn.LayerNorm(64), nn.Parameter(torch.zeros(items))
        self.mask = nn.Transformer.generate_square_subsequent_mask(LENGTH) if causal else None

    def forward(self, rows: Tensor) -> Tensor:
        x = self.dropout(self.items(rows) + self.positions(torch.arange(rows.shape[1])))
        padding = torch.zeros(rows.shape).masked_fill(rows == 0, -torch.inf)
        if self.mask is None:
            return self.norm(self.layers(x, src_key_padding_mask=padding))
        return self.norm(self.layers(x, mask=self.mask, is_causal=True))  # padding is on the right, unseen


class PlainTraining:
    """The encoder and its optimizer."""

    def __init__(self, items: int, causal: bool) -> None:
        self.items, self.causal = items, causal
        self.encoder = PlainEncoder(items, causal)
        self.optimizer = torch.optim.AdamW(self.encoder.parameters(), lr=1e-3)

    def step(self, windows: Tensor) -> int:
        """Learn from windows int64[B, 50] (causal: 51); returns the number of target positions."""
        if self.causal:
            inputs, targets = windows[:, :-1], windows[:, 1:]
            predicted = targets != 0
        else:
            predicted = (torch.rand(windows.shape) < RATE) & (windows != 0)
            inputs, targets = windows.masked_fill(predicted, self.items + 1), windows
        logits = F.linear(self.encoder(inputs)[predicted], self.encoder.items.weight[1:-1], self.encoder.bias)
        self.optimizer.zero_grad()
        F.cross_entropy(logits, targets[predicted] - 1).backward()
        nn.utils.clip_grad_norm_(self.encoder.parameters(), 5.0)
        self.optimizer.step()
        return int(predicted.sum())
