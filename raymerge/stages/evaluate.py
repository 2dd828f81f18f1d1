"""From models to the ranks of every user's test item."""

from collections.abc import Mapping, Sequence

import pyarrow.parquet as pq

from raymerge.artifacts import Artifact
from raymerge.data.prepare import ITEMS_FILE
from raymerge.evaluation.distributed import Ranks, rank_users
from raymerge.pool import Pool
from raymerge.stages.context import Context
from raymerge.stages.prepare import partitions_of
from raymerge.stages.train import model_digest


def evaluate(context: Context, pool: Pool, data: Artifact, models: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """Ranks of the test items of all users under each model, by name; one Parquet file a partition."""
    return {name: _evaluate(context, pool, data, name, [model]) for name, model in models.items()}


def evaluate_together(context: Context, pool: Pool, data: Artifact, models: Sequence[Artifact]) -> Artifact:
    """Ranks under the mean of the logits of several models."""
    return _evaluate(context, pool, data, "ensemble", models)


def _evaluate(context: Context, pool: Pool, data: Artifact, name: str, models: Sequence[Artifact]) -> Artifact:
    run, settings = f"evaluate/{name}", context.config.evaluation
    inputs = {"data": data.digest, "models": [model_digest(model) for model in models]}
    configuration = {
        "rankings": list(settings.rankings),
        "filter_seen": settings.filter_seen,
        "seed": settings.seed,
        "split": "test",
        "threads": context.config.cluster.actor_threads,
    }
    found = context.find("evaluate", run, inputs=inputs, configuration=configuration)
    if found is not None:
        return found
    partitions = partitions_of(data)
    with context.make("evaluate", run, inputs=inputs, configuration=configuration) as making:
        making.progress(0, len(partitions))
        written: list[str] = []

        def write(partition: str, ranks: Ranks) -> None:
            written.append(partition.rpartition("/")[2])
            pq.write_table(ranks.table(), making.folder / written[-1])
            making.progress(len(written), len(partitions) + 1)

        rank_users(
            pool,
            tuple(model.file("model") for model in models),
            partitions=partitions,
            items=data.file(ITEMS_FILE),
            split="test",
            config=settings,
            on_partition=write,
        )
        making.progress(1, 1)
    return context.committed("evaluate", inputs, configuration)
