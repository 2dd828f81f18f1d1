"""The ensemble scores as the mean of its members' logits, however it is computed."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from raymerge.evaluation.config import EvaluationConfig
from raymerge.evaluation.ranking import full_ranks, rank_targets
from raymerge.models.encoder import EncoderConfig, SequenceEncoder
from raymerge.models.ensemble import Ensemble


def test_a_ranking_builds_the_head_once() -> None:
    class Counting(Ensemble):
        built = 0

        def head(self) -> tuple[Tensor, Tensor | None, None]:
            self.built += 1
            return super().head()

    models = [SequenceEncoder(30, EncoderConfig(max_length=6, dim=8, heads=2)).eval() for _ in range(2)]
    ensemble, rows = Counting(models), torch.randint(1, 31, (20, 6))
    seen = SimpleNamespace(items=torch.zeros(0, dtype=torch.int64), offsets=torch.zeros(21, dtype=torch.int64))
    examples = SimpleNamespace(histories=rows, targets=rows[:, 0], keys=rows[:, 1], seen=seen)
    ranks = rank_targets(ensemble, examples, config=EvaluationConfig(), counts=torch.ones(30, dtype=torch.int64))
    assert set(ranks) == {"full", "uni100", "pop100"} and ensemble.built == 1


@pytest.mark.parametrize("some", [{}, {"output_bias": False}, {"repeat_direction": True}])
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_ranks_are_those_of_the_mean_logits(attention: str, some: dict[str, bool]) -> None:
    torch.manual_seed(1)
    config = EncoderConfig(attention=attention, max_length=6, dim=8, heads=2, feed_forward=16, **some)
    models = [SequenceEncoder(30, config).double().eval() for _ in range(3)]
    for model in models:
        for parameter in model.parameters():
            parameter.data.normal_(std=0.5)
    histories = torch.randint(1, 31, (20, 6))
    histories[:7, :3] = 0
    targets = torch.randint(1, 31, (20,))
    with torch.no_grad():
        logits = torch.stack([model(histories) for model in models]).mean(dim=0)
    own = logits.gather(1, targets[:, None] - 1)
    assert full_ranks(Ensemble(models), histories, targets).tolist() == (logits >= own).sum(dim=1).tolist()
