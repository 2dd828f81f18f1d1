"""An objective that takes more memory than there is, and its configuration, which brings it into workers."""

import torch

from raymerge import memory
from raymerge.models.encoder import SequenceEncoder
from raymerge.models.objectives import OBJECTIVES, NextItem, ObjectiveConfig
from raymerge.models.recommendation import Batch, Term

MORE_THAN_THERE_IS = 1 << 50


class Hungry(ObjectiveConfig):
    """Unpickling it imports this file, so that a worker knows the objectives below."""


@OBJECTIVES.register("hungry")
class TooMuchAtOnce(NextItem):
    """Finds no memory unless it works in smaller chunks."""

    def forward(self, encoder: SequenceEncoder, batch: Batch) -> list[Term]:
        if memory.pieces() == 1:
            bytearray(MORE_THAN_THERE_IS)
        return super().forward(encoder, batch)


@OBJECTIVES.register("insatiable")
class TooMuch(NextItem):
    """Never finds enough."""

    def forward(self, encoder: SequenceEncoder, batch: Batch) -> list[Term]:
        torch.empty(MORE_THAN_THERE_IS, dtype=torch.uint8)
        return super().forward(encoder, batch)
