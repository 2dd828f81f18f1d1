"""Objectives that need more memory than there is, and a configuration that registers them in workers."""

from typing import Any

import torch

from raymerge.execution import chunking
from raymerge.models.batch import Batch, Term
from raymerge.models.encoder import SequenceEncoder
from raymerge.models.objectives import OBJECTIVES, NextItem, ObjectiveConfig

MORE_THAN_THERE_IS = 1 << 50


class TooMuchAtOnce(NextItem):
    """Runs out of memory unless in smaller chunks."""

    def forward(self, encoder: SequenceEncoder, batch: Batch) -> list[Term]:
        if chunking.divisor() == 1:
            bytearray(MORE_THAN_THERE_IS)
        return super().forward(encoder, batch)


class TooMuch(NextItem):
    """Always runs out of memory."""

    def forward(self, encoder: SequenceEncoder, batch: Batch) -> list[Term]:
        torch.empty(MORE_THAN_THERE_IS, dtype=torch.uint8)
        return super().forward(encoder, batch)


HUNGRY = {"hungry": TooMuchAtOnce, "insatiable": TooMuch}


class Hungry(ObjectiveConfig):
    """One of the above; unpickling registers them in the process."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name in HUNGRY.keys() - set(OBJECTIVES):
            OBJECTIVES.add(name, HUNGRY[name])
        self.__dict__.update(state)
