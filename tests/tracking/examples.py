"""A configuration, a data set, a report and a score like those of a run."""

from raymerge.evaluation.report_schema import Comparison, Kind, Measured, Report, Row
from raymerge.tracking.registration import Score

CONFIGURATION = {
    "recipe": "demo",
    "training": {"epochs": 3, "objectives": ["bert4rec", "duorec"]},
    "input": {"url": "s3://reader:hunter2@bucket/log.parquet?token=hunter2", "password": "hunter2"},
}
DATASET = {
    "name": "demo",
    "digest": "0123456789abcdef",
    "source": "https://reader:hunter2@example.org/log.csv?token=hunter2",
    "counts": {"users": 20, "items": 9, "interactions": 180},
}


def measured(mean: float) -> Measured:
    return {"mean": mean, "low": mean - 0.004, "high": mean + 0.004}


def row(name: str, kind: Kind, ndcg: float) -> Row:
    metrics = {"ndcg@10": measured(ndcg), "ndcg@20": measured(1.2 * ndcg), "hr@10": measured(2 * ndcg)}
    return {"name": name, "kind": kind, "metrics": {"full": metrics, "uni100": metrics}}


def comparison(reference: str, difference: float, *, p_holm: float) -> Comparison:
    return {
        "candidate": "merge + fine-tuning",
        "reference": reference,
        "metric": "ndcg@10",
        "difference": difference,
        "relative": difference / (0.14 - difference),
        "low": difference - 0.005,
        "high": difference + 0.005,
        "p": p_holm / 2,
        "p_holm": p_holm,
    }


def scored(value: float) -> Score:
    return Score(value, "NDCG@10, seen items filtered", "of all data")


def example_report() -> Report:
    return {
        "schema": 1,
        "recipe": "ml-1m",
        "protocol": {"split": "test", "seen_filtered": True, "max_length": 50, "ranking": "full", "users": 6040},
        "rows": [
            row("bert4rec", "member", 0.12),
            row("duorec", "member", 0.13),
            row("uniform average", "average", 0.136),
            row("Fisher merge", "merged", 0.138),
            row("merge + fine-tuning", "fine-tuned", 0.14),
            row("ensemble of 2", "ensemble", 0.15),
        ],
        "comparisons": [comparison("uniform average", 0.004, p_holm=0.12), comparison("duorec", 0.01, p_holm=0.004)],
        "merge": {
            "method": "fisher",
            "coefficients": {"bert4rec": 0.4, "duorec": 0.6},
            "normalise": "none",
            "epsilon": 1e-6,
            "power": 1.0,
            "step": 1.0,
            "validation_score": 0.15,
        },
        "validation": {"bert4rec": 0.125, "duorec": 0.135, "Fisher merge": 0.145, "merge + fine-tuning": 0.15},
        "final": "merge + fine-tuning",
        "data": {"users": 6040, "items": 3416, "interactions": 999611, "digest": "0123456789abcdef"},
        "artifacts": {
            "models": {"duorec": "train/0123", "merge + fine-tuning": "train/4567"},
            "diagonals": {"bert4rec": "fisher/1", "duorec": "fisher/2"},
        },
        "timings": {"prepare": 2.5, "train": 100.0},
        "versions": {"raymerge": "0.1.0", "torch": "2.13.0"},
    }
