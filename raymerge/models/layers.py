"""Parameters grouped by layer: embeddings, attention and feed-forward of each block, norms."""

import re
from collections.abc import Iterable


def layer_of(parameter: str) -> str:
    """The layer that a parameter belongs to; all normalisations count as one.

    >>> layer_of("blocks.0.attention.qkv.weight"), layer_of("item_embedding.weight"), layer_of("output_norm.bias")
    ('block 1 attention', 'item embedding', 'norms')
    """
    if "norm." in parameter:
        return "norms"
    block = re.match(r"\w+\.(\d+)\.(\w+)", parameter)
    name = f"block {int(block[1]) + 1} {block[2]}" if block else parameter.split(".")[0]
    return name.replace("_", " ")


def by_layer(parameters: Iterable[str]) -> dict[str, list[str]]:
    """Names of parameters by layer, from the input to the output.

    >>> list(by_layer(["output_bias", "repeat_direction", "item_embedding.weight"]))
    ['item embedding', 'output bias', 'repeat direction']
    """
    layers: dict[str, list[str]] = {}
    for name in sorted(parameters, key=lambda name: name.startswith(("output", "repeat"))):
        layers.setdefault(layer_of(name), []).append(name)
    return layers
