"""The Fisher diagonal of a model: how sure it is of each of its parameters."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raymerge.fisher.diagonal import accumulate, estimate
    from raymerge.fisher.weights import ESTIMATORS, FisherConfig

__all__ = ["ESTIMATORS", "FisherConfig", "accumulate", "estimate"]


def __getattr__(name: str) -> Any:
    """Load the engine (and torch) only when it is asked for."""
    if name in ("ESTIMATORS", "FisherConfig"):
        from raymerge.fisher import weights

        return getattr(weights, name)
    if name in ("accumulate", "estimate"):
        from raymerge.fisher import diagonal

        return getattr(diagonal, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
