"""raymerge: train several sequential recommenders, weigh them by Fisher information, merge them into one."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "load_model": "raymerge.artifacts",
    "load_diagonal": "raymerge.artifacts",
    "merge": "raymerge.merging.methods",
}
__all__ = ["load_diagonal", "load_model", "merge"]

if TYPE_CHECKING:
    from raymerge.artifacts import load_diagonal, load_model
    from raymerge.merging.methods import merge


def __getattr__(name: str) -> Any:
    """Import on first use (PEP 562), so that the mathematics runs with torch alone."""
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'raymerge' has no attribute {name!r}")
