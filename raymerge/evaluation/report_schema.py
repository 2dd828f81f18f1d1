"""What `report.json` holds: its writer and its readers share these types."""

import json
from typing import Literal

from pydantic import TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from raymerge.errors import ArtifactError
from raymerge.files import storage

REPORT_FILE = "report.json"
SCHEMA = 1  # raised when a key changes its meaning or a required key is added
Kind = Literal["base", "member", "mean", "control", "average", "round", "merged", "fine-tuned", "ceiling", "ensemble"]
NOT_SERVED: tuple[Kind, ...] = ("mean", "ensemble")  # rows that cannot be served as one model at the cost of one


class Measured(TypedDict):
    """A metric: mean over users and its bootstrap interval."""

    mean: float
    low: float
    high: float


class Row(TypedDict):
    """One model: ranking (`full`, `uni100`, `pop100`) → metric (`ndcg@10`) → value.

    For several runs, `metrics` holds means over them and `spread` standard deviations.
    """

    name: str
    kind: Kind
    metrics: dict[str, dict[str, Measured]]
    spread: NotRequired[dict[str, dict[str, float]]]


class Comparison(TypedDict):
    """Candidate minus reference, paired by user: `p_holm` is Holm-corrected over all comparisons."""

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
    """How the models were measured; `ranking` is the one in the printed table."""

    split: Literal["test"]
    seen_filtered: bool
    max_length: int
    ranking: str
    users: int
    offered: NotRequired[int]  # how many of the catalogue's items are ranked, if not all
    validation: NotRequired[str]  # what models were chosen on, in words
    validation_users: NotRequired[int]  # how many; the others' second-to-last items are trained on
    runs: NotRequired[int]  # how many, with different seeds, the metrics are means over


def seen_items(*, filtered: bool) -> str:
    """In words, whether items already in the history are ranked."""
    return f"seen items {'filtered' if filtered else 'not filtered'}"


class Group(TypedDict):
    """Users hit by the same members (named in words), and how many of them each other model hits."""

    members: str
    users: int
    hits: dict[str, int]


class Overlap(TypedDict):
    """Users grouped by which members rank their item among the first `k`; each user is in one group."""

    k: int
    ranking: str
    groups: list[Group]


class Line(TypedDict):
    """Validation NDCG@10 of the models between two members, one per point."""

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
    step: float
    validation_score: float | None


class Data(TypedDict):
    """The log after cleaning."""

    users: int
    items: int
    interactions: int
    digest: str


class Results(TypedDict):
    """Everything in the printed table, for one run or several; `final` names the model to serve."""

    schema: int
    recipe: str
    protocol: Protocol
    rows: list[Row]
    comparisons: list[Comparison]
    data: Data
    final: str


class Report(Results):
    """The results of a run and where they come from.

    `validation` holds scores and `timings` seconds by model; `artifacts` holds places by name, relative to the output
    folder. A single member has no `overlap` and no `interpolation`.
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
    """Read `report.json`; ArtifactError names the first invalid key, or the unknown schema."""
    try:
        version = json.loads(text)["schema"]
        if version != SCHEMA:
            raise ArtifactError(f"report.json has schema {version!r}, this version of raymerge reads {SCHEMA}")
        return TypeAdapter(Report).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"report.json is invalid: {where}: {first['msg']}") from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ArtifactError("report.json is not a report: it was cut off or written by another program") from None
