"""Blocks of tensors in files: written files are safetensors, and the right rows are read."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raymerge.errors import ArtifactError
from raymerge.files.blocks import Block, TensorFile, blocks, write_blocks

SHAPES = {"b": (5, 3), "a": (7,), "scalar": (), "empty": (0, 4), "deep": (3, 2, 2)}


def tensors(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: torch.randn(shape, dtype=torch.float64).to(dtype) for name, shape in SHAPES.items()}


@settings(max_examples=25, deadline=None)
@given(most_bytes=st.integers(1, 200))
def test_blocks_cover_each_row_once_in_order_and_keep_to_the_size(most_bytes: int) -> None:
    cut = list(blocks(SHAPES, most_bytes=most_bytes))
    values = tensors(torch.float64)
    for name, value in values.items():
        rows = [block.of(value).reshape(-1) for block in cut if block.name == name]
        assert torch.equal(torch.cat([*rows, torch.empty(0, dtype=torch.float64)]), value.reshape(-1))
    assert [block.name for block in cut] == sorted(block.name for block in cut)
    for block in cut:
        assert block.stop - block.start == 1 or block.of(values[block.name]).nbytes <= most_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_files_are_compatible_with_safetensors_both_ways(tmp_path: Path, dtype: torch.dtype) -> None:
    values, file = tensors(dtype), tmp_path / "values.safetensors"
    write_blocks(file, SHAPES, dtype, (block.of(values[block.name]) for block in blocks(SHAPES, most_bytes=20)))
    for name, found in safetensors.torch.load_file(file).items():
        assert torch.equal(found, values[name]), name
    safetensors.torch.save_file(values, file)
    opened = TensorFile(str(file))
    assert opened.shapes == SHAPES
    for block in blocks(SHAPES, most_bytes=30):
        assert torch.equal(opened.read(block), block.of(values[block.name])), block


@pytest.mark.parametrize("content", [b"", b"not a file of tensors", b"\xff" * 64, b"\x02" + 7 * b"\x00" + b"[]"])
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ArtifactError, match="is not a safetensors file"):
        TensorFile(str(tmp_path / "x"))


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x"
    safetensors.torch.save_file({"a": torch.ones(8, 8)}, file)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ArtifactError, match="is truncated"):
        TensorFile(str(file)).read(Block("a", 4, 8))
