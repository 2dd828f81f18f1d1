"""A model that learned nothing, as training leaves it."""

import torch

from raymerge.artifacts import Artifact, Key, save_model
from raymerge.data.prepare import ITEMS_FILE
from raymerge.evaluation.validation import SCORE
from raymerge.models.encoder import SequenceEncoder
from raymerge.stages.context import Context, Making


def random_model(context: Context, data: Artifact, *, name: str = "random", seed: int = 0) -> Artifact:
    """Of the context's encoder and the catalogue of the data, committed to the context's output."""

    def draw(making: Making) -> None:
        torch.manual_seed(seed)
        module = SequenceEncoder(data.counts["items"], context.config.encoder)
        save_model(module, making.folder / "model", items_url=data.file(ITEMS_FILE))
        making.counts[SCORE] = 0.1

    return context.make(name, Key("train", {"seed": seed}), draw)
