"""The Fisher diagonal of a model: how sure it is of each of its parameters."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_WHERE = {
    "ESTIMATORS": "raymerge.fisher.weights",
    "FisherConfig": "raymerge.fisher.weights",
    "accumulate": "raymerge.fisher.diagonal",
    "estimate": "raymerge.fisher.diagonal",
}
__all__ = ["ESTIMATORS", "FisherConfig", "accumulate", "estimate"]

if TYPE_CHECKING:
    from raymerge.fisher.diagonal import accumulate, estimate
    from raymerge.fisher.weights import ESTIMATORS, FisherConfig


def __getattr__(name: str) -> Any:
    """Load the engine (and torch) on first use."""
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
