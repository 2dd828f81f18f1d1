"""Training speed, beside a plain torch loop in the same run: `python tests/bench/bench_training.py [--steps N]`.

Both train windows of MovieLens-1M's shape (L 50, d 64, 2 blocks, 2 heads, dropout .2, mask rate .2, 3416 items in the
softmax) and take their steps in turns, so that other work on the machine slows both down alike. Figures are of the
fastest step of each: non-padding input tokens and guessed positions a second. Views of the contrastive objectives are
not counted as tokens.
"""

import argparse
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raymerge.models.encoder import EncoderConfig, SequenceEncoder
from raymerge.models.objectives import OBJECTIVES, ObjectiveConfig, build_objective
from raymerge.models.recommendation import Batch
from raymerge.training.config import TrainingConfig
from raymerge.training.step import Stepper

ITEMS, LENGTH, RATE = 3416, 50, 0.2
Step = Callable[[], int]  # takes one step, returns how many positions it guessed


class PlainEncoder(nn.Module):
    """What one writes first: torch's own transformer layers."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.items, self.positions = nn.Embedding(ITEMS + 2, 64, padding_idx=0), nn.Embedding(LENGTH, 64)
        layer = nn.TransformerEncoderLayer(64, 2, 256, 0.2, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.dropout, self.norm, self.bias = nn.Dropout(0.2), nn.LayerNorm(64), nn.Parameter(torch.zeros(ITEMS))
        self.mask = nn.Transformer.generate_square_subsequent_mask(LENGTH) if causal else None

    def forward(self, rows: Tensor) -> Tensor:
        x = self.dropout(self.items(rows) + self.positions(torch.arange(rows.shape[1])))
        padding = torch.zeros(rows.shape).masked_fill(rows == 0, -torch.inf)
        return self.norm(self.layers(x, mask=self.mask, src_key_padding_mask=padding))


def plain(causal: bool, windows: Tensor) -> Step:
    encoder = PlainEncoder(causal)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)

    def step() -> int:
        if causal:
            inputs, targets, asked = windows[:, :-1], windows[:, 1:], windows[:, :-1] != 0
        else:
            asked = torch.rand(windows.shape) < RATE
            inputs, targets = windows.masked_fill(asked, ITEMS + 1), windows
        logits = F.linear(encoder(inputs)[asked], encoder.items.weight[1:-1], encoder.bias)
        optimizer.zero_grad()
        F.cross_entropy(logits, targets[asked] - 1).backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 5.0)
        optimizer.step()
        return int(asked.sum())

    return step


def ours(name: str, causal: bool, windows: Tensor) -> Step:
    config = EncoderConfig(attention="causal" if causal else "bidirectional")
    encoder = SequenceEncoder(ITEMS, config).train()
    stepper = Stepper(encoder, build_objective(ObjectiveConfig(name), config), TrainingConfig())
    batch = Batch(windows, torch.arange(len(windows)), windows[:, :-1])
    return lambda: int(stepper.step(batch, rate=1e-3).counts[0])


def race(contestants: dict[str, Step], steps: int) -> dict[str, tuple[float, int]]:
    """Seconds of the fastest step, and positions that it guessed."""
    best = dict.fromkeys(contestants, (math.inf, 0))
    for _ in range(steps):
        for name, step in contestants.items():
            began = time.perf_counter()
            targets = step()
            best[name] = min(best[name], (time.perf_counter() - began, targets))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"{'':28}{'tokens/s':>12}{'targets/s':>12}{'times plain':>13}")
    for causal in (False, True):
        attention = "causal" if causal else "bidirectional"
        windows = torch.randint(1, ITEMS + 1, (arguments.batch, LENGTH + causal))
        contestants = {f"plain loop, {attention}": plain(causal, windows)}
        for name in OBJECTIVES:
            if OBJECTIVES[name].attention in (None, attention):
                contestants[f"{name}, {attention}"] = ours(name, causal, windows)
        results = race(contestants, arguments.steps)
        reference = next(iter(results.values()))[0]
        for name, (seconds, targets) in results.items():
            tokens = arguments.batch * LENGTH
            print(f"{name:28}{tokens / seconds:12,.0f}{targets / seconds:12,.0f}{reference / seconds:13.2f}")


if __name__ == "__main__":
    main()
