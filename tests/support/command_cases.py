"""What tests of commands need: the line that a user error prints, and small artifacts to name."""

from pathlib import Path

import pyarrow as pa
import pytest
import ray
import torch

from raymerge.artifacts import Key, Output, load_model, open_artifact, save_model, save_tensors
from raymerge.cli import main
from raymerge.data.sequences import Items, write_items
from raymerge.models.encoder import EncoderConfig, SequenceEncoder
from raymerge.stages.inputs import model_digest


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a user error prints, with exit code 2 and without starting Ray."""
    before = ray.is_initialized()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    assert ray.is_initialized() == before
    text = capsys.readouterr().err.strip()
    return text.splitlines()[-1]


def model_artifact(folder: Path, *, num_items: int = 3, ids: list[str] | None = None, **settings: int) -> Path:
    """An untrained model in an artifact of the train stage."""
    items = folder.parent / f"{folder.name}-items.parquet"
    ids = ids or [f"film {number}" for number in range(num_items)]
    write_items(Items(pa.array(ids), torch.ones(len(ids), dtype=torch.int64)), items)
    output = Output(str(folder)).open()
    key = Key("train", {"name": folder.name}, {**settings, "objective": {"name": "bert4rec"}})
    with output.draft(key) as draft:
        config = EncoderConfig(max_length=4, dim=8, feed_forward=8, **{"heads": 2, **settings})
        save_model(SequenceEncoder(num_items, config), draft.folder / "model", items_url=str(items))
    found = output.find(key)
    assert found is not None
    return Path(found.url)


def diagonal_artifact(folder: Path, of: Path, value: float) -> str:
    """A diagonal of a model with the same number everywhere."""
    key = Key("fisher", {"model": model_digest(open_artifact(str(of)))})
    output = Output(str(folder / "diagonals")).open()
    with output.draft(key) as draft:
        module = load_model(str(of))
        tensors = {name: torch.full_like(p, value) for name, p in module.named_parameters()}
        save_tensors(tensors, draft.folder / "diagonal.safetensors")
    return output.locate(key)
