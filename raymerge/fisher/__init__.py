"""The Fisher diagonal of a model: how sure it is of each of its parameters."""

from raymerge.fisher.diagonal import accumulate, estimate
from raymerge.fisher.weights import ESTIMATORS, FisherConfig

__all__ = ["ESTIMATORS", "FisherConfig", "accumulate", "estimate"]
