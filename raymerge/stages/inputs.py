"""What stages read from the manifests of data and models."""

from collections.abc import Sequence

from raymerge.artifacts import Artifact
from raymerge.data.prepare import ITEMS_FILE, PARTITIONS_FOLDER


def partitions_of(data: Artifact) -> list[str]:
    """URLs of the user partitions, in order."""
    return [data.file(name) for name in sorted(data.manifest["files"]) if name.startswith(PARTITIONS_FOLDER)]


def restricted_catalogue(data: Artifact) -> str | None:
    """URL of the catalogue if only some of its items are on offer in these data, else None."""
    restricted = "offered" in data.counts and items_on_offer(data) < data.counts["items"]
    return data.file(ITEMS_FILE) if restricted else None


def catalogues_of(data: Sequence[Artifact]) -> dict[str, str | None]:
    """Partitions of all `data`, each with its `restricted_catalogue`."""
    return {partition: restricted_catalogue(one) for one in data for partition in partitions_of(one)}


def items_on_offer(data: Artifact) -> int:
    """Number of items that a model of these data chooses from: the whole catalogue, or the items of the market."""
    return int(data.counts.get("offered", data.counts["items"]))


def model_digest(model: Artifact) -> str:
    """Digest of a model's parameter file."""
    return str(model.manifest["files"]["model/model.safetensors"])
