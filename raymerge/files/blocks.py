"""Safetensors files read and written block by block, so that tensors need not fit into memory twice.

The format (https://github.com/huggingface/safetensors#format): 8 bytes with the length of a JSON header, the header,
and the tensors one after the other, little-endian, row by row. A block of rows is therefore contiguous.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from raymerge.errors import ArtifactError, UserError
from raymerge.files import storage
from raymerge.redaction import without_credentials

BLOCK_BYTES = 64 << 20
DTYPES = {"F64": torch.float64, "F32": torch.float32}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Block:
    """Rows `start` up to but not including `stop` of a tensor; a scalar is a single row."""

    name: str
    start: int
    stop: int

    def of(self, tensor: Tensor) -> Tensor:
        """The same rows of a tensor in memory."""
        return tensor[self.start : self.stop] if tensor.ndim else tensor


def blocks(shapes: Shapes, *, most_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """All rows of all tensors, sorted by name, in blocks of about `most_bytes` in float64."""
    for name in sorted(shapes):
        rows, width = _rows(shapes[name])
        step = max(1, most_bytes // max(1, width * 8))
        for start in range(0, rows, step):
            yield Block(name, start, min(start + step, rows))


def _rows(shape: tuple[int, ...]) -> tuple[int, int]:
    """Number of rows, and of values per row."""
    return (shape[0], prod(shape[1:])) if shape else (1, 1)


class TensorFile:
    """A safetensors file at a URL that is read in blocks; ArtifactError if it is not one."""

    def __init__(self, url: str) -> None:
        self._url = url
        try:
            with storage.open_file(url) as handle:
                length = int.from_bytes(handle.read(8), "little")
                header = json.loads(handle.read(length))
            header.pop("__metadata__", None)
            self.shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
            self._dtypes = {name: DTYPES[entry["dtype"]] for name, entry in header.items()}
            self._starts = {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items()}
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
            place = without_credentials(url)
            raise ArtifactError(f"{place} is not a safetensors file of F32 or F64 ({type(error).__name__})") from None

    def read(self, block: Block) -> Tensor:
        """The rows of a block, in the shape of the sliced tensor."""
        shape, dtype = self.shapes[block.name], self._dtypes[block.name]
        _, width = _rows(shape)
        row = width * dtype.itemsize
        found = torch.empty((block.stop - block.start, *shape[1:]) if shape else (), dtype=dtype)
        with storage.open_file(self._url) as handle:
            handle.seek(self._starts[block.name] + block.start * row)
            content = handle.read((block.stop - block.start) * row)
        if len(content) != found.numel() * dtype.itemsize:
            raise ArtifactError(f"{without_credentials(self._url)} is truncated; delete it and run again")
        if content:
            found.view(-1).copy_(torch.frombuffer(bytearray(content), dtype=dtype))
        return found


def write_blocks(file: Path, shapes: Shapes, dtype: torch.dtype, content: Iterable[Tensor]) -> None:
    """Write a safetensors file with one dtype; `content` holds its blocks in the order of `blocks`."""
    header, end = {}, 0
    for name in sorted(shapes):
        size = prod(shapes[name]) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shapes[name]), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    with file.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for block in content:
            handle.write(block.detach().to("cpu", dtype).contiguous().numpy().tobytes())
