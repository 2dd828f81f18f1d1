"""Times, memory and machines for people to read."""

from collections.abc import Sequence

from raymerge.execution.capacity import Node
from raymerge.execution.costs import GIB


def gib(size_bytes: float) -> str:
    """Memory in GiB.

    >>> gib(700 * 2**20), gib(12.4 * 2**30)
    ('0.7 GiB', '12.4 GiB')
    """
    return f"{size_bytes / GIB:.1f} GiB"


def duration(seconds: float) -> str:
    """A rounded time, for an estimate.

    >>> duration(41), duration(250), duration(9000), duration(400_000)
    ('41 s', '4 min', '2.5 h', '4.6 days')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def describe(nodes: Sequence[Node]) -> str:
    """The cluster in words.

    >>> describe([Node(2, 0, 2**32)] * 3)
    '3 nodes with 6 CPUs and 12.0 GiB'
    """
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    memory = gib(sum(node.memory_bytes for node in nodes))
    what = f"{cpus:g} CPUs" + (f", {gpus:g} GPUs" if gpus else "")
    return f"{len(nodes)} node{'s' if len(nodes) > 1 else ''} with {what} and {memory}"
