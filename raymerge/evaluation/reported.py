"""What `report.json` holds: its writer and its readers share these types."""

import json
from typing import Literal

from pydantic import TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from raymerge import storage
from raymerge.errors import ArtifactError

SCHEMA = 1  # raised when a key changes its meaning or a required key is added
Kind = Literal["base", "member", "mean", "control", "average", "round", "merged", "fine-tuned", "ceiling", "ensemble"]
NOT_SERVED: tuple[Kind, ...] = ("mean", "ensemble")  # rows that are no model which could be served at the cost of one


class Measured(TypedDict):
    """A metric: mean over users and its bootstrap interval."""

    mean: float
    low: float
    high: float


class Row(TypedDict):
    """One model: ranking (`full`, `uni100`, `pop100`) → metric (`ndcg@10`) → value.

    Of several runs `metrics` has means over them and `spread` standard deviations.
    """

    name: str
    kind: Kind
    metrics: dict[str, dict[str, Measured]]
    spread: NotRequired[dict[str, dict[str, float]]]


class Comparison(TypedDict):
    """Candidate minus reference, paired by user: `p_holm` is the p value after Holm's correction over all of them."""

    candidate: str
    reference: str
    metric: str
    difference: float
    relative: float | None
    low: float
    high: float
    p: float
    p_holm: float


class Protocol(TypedDict):
    """How the models were measured; `ranking` is the one that the printed table shows."""

    split: Literal["test"]
    seen_filtered: bool
    max_length: int
    ranking: str
    users: int
    offered: NotRequired[int]  # how many of the catalogue's items are ranked, where that is not all of them
    validation: NotRequired[str]  # on what models were chosen, in words
    validation_users: NotRequired[int]  # how many of them; the others' last item but one trains
    runs: NotRequired[int]  # of other seeds, over which the metrics are means


def seen_items(*, filtered: bool) -> str:
    """In words, whether a model ranks what a user had."""
    return f"seen items {'filtered' if filtered else 'not filtered'}"


class Group(TypedDict):
    """Users whom the same members hit, in words, and how many of them each other model hits."""

    members: str
    users: int
    hits: dict[str, int]


class Overlap(TypedDict):
    """Users by which members rank their item among the first `k`; each is in one group."""

    k: int
    groups: list[Group]


class Line(TypedDict):
    """Validation NDCG@10 of the models between two members, one for each of the points."""

    first: str
    second: str
    scores: list[float]


class Interpolation(TypedDict):
    """Lines between members: a point t is the model (1 − t) · first + t · second."""

    points: list[float]
    lines: list[Line]


class Merge(TypedDict):
    """What the merge chose, on validation."""

    method: str
    coefficients: dict[str, float]
    normalise: Literal["none", "model", "tensor"]
    epsilon: float
    power: float
    validation_score: float | None


class Data(TypedDict):
    """The log after cleaning."""

    users: int
    items: int
    interactions: int
    digest: str


class Results(TypedDict):
    """All that the printed table shows, of one run or of several; `final` names the model to serve."""

    schema: int
    recipe: str
    protocol: Protocol
    rows: list[Row]
    comparisons: list[Comparison]
    data: Data
    final: str


class Report(Results):
    """The results of a run and where they come from.

    `validation` are scores by model, `timings` seconds; `artifacts` are places by name, told from the output folder on.
    A single member has no `overlap` and no `interpolation`.
    """

    merge: Merge
    validation: dict[str, float]
    artifacts: dict[Literal["models", "diagonals"], dict[str, str]]
    timings: dict[str, float]
    versions: dict[str, str]
    overlap: NotRequired[Overlap]
    interpolation: NotRequired[Interpolation]


def read(url: str) -> Report:
    """The report at a URL; see `loads`."""
    return loads(storage.read_bytes(url))


def loads(text: str | bytes) -> Report:
    """Read `report.json`; ArtifactError names the first key that is wrong, or a schema that is not known."""
    try:
        version = json.loads(text)["schema"]
        if version != SCHEMA:
            raise ArtifactError(f"report.json has schema {version!r}, this version of raymerge reads {SCHEMA}")
        return TypeAdapter(Report).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"report.json is not as it should be: {where}: {first['msg']}") from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ArtifactError("report.json is not a report: it was cut off or written by another program") from None
