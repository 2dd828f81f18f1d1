"""Models that learned nothing, as training leaves them."""

from pathlib import Path

import pyarrow as pa
import torch

from raymerge.artifacts import Artifact, Key, save_model
from raymerge.data.prepare import ITEMS_FILE
from raymerge.data.sequences import Items, write_items
from raymerge.evaluation.validation import SCORE
from raymerge.models.encoder import EncoderConfig, SequenceEncoder
from raymerge.stages.context import Context, TrackedDraft


def random_model(context: Context, data: Artifact, *, name: str = "random", seed: int = 0) -> Artifact:
    """Of the context's encoder and the catalogue of the data, committed to the context's output."""

    def draw(draft: TrackedDraft) -> None:
        torch.manual_seed(seed)
        module = SequenceEncoder(data.counts["items"], context.config.encoder)
        save_model(module, draft.folder / "model", items_url=data.file(ITEMS_FILE))
        draft.counts[SCORE] = 0.1

    return context.make(name, Key("train", {"seed": seed}, {"objective": {"name": "next_item"}}), draw)


def save_random_model(folder: Path, item_ids: list[int] | list[str], *, seed: int = 0) -> Path:
    """A small model in a folder of its own, with no artifact around it."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    counts = torch.ones(len(item_ids), dtype=torch.int64)
    write_items(Items(pa.array(item_ids), counts), folder / "catalogue.parquet")
    config = EncoderConfig(max_length=5, dim=8, blocks=1, heads=1, feed_forward=8)
    save_model(SequenceEncoder(len(item_ids), config), folder, items_url=str(folder / "catalogue.parquet"))
    (folder / "catalogue.parquet").unlink()
    return folder
