"""What the contexts of stage tests are made with."""

from collections.abc import Callable

from raymerge.stages.context import Context

SMALL = (
    "encoder.max_length=10",
    "encoder.dim=16",
    "encoder.feed_forward=32",
    "prepare.partitions=3",
    "training.epochs=3",
    "cluster.base_workers=1",
)
MakeContext = Callable[..., Context]
