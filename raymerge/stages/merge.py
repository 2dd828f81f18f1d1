"""From models and their diagonals to one model, chosen on the validation split."""

from collections.abc import Callable, Mapping
from dataclasses import asdict

from raymerge.artifacts import Artifact, save_model
from raymerge.data.prepare import ITEMS_FILE
from raymerge.errors import ConfigError, MergeError
from raymerge.merging.coefficients import Point, search_settings
from raymerge.merging.distributed import Candidate, merged_model, validate
from raymerge.merging.methods import METHODS, MergeConfig, MergeSetting
from raymerge.pool import Pool
from raymerge.stages.context import SCORE, Context
from raymerge.stages.prepare import partitions_of
from raymerge.stages.train import model_digest

Scorer = Callable[[MergeSetting, Point], float]


def average(context: Context, pool: Pool, data: Artifact, models: Mapping[str, Artifact]) -> Artifact:
    """The uniform average of models, which a better merge has to beat."""
    return merge(context, pool, data, models, {}, MergeConfig(method="average", coefficients="equal"))


def merge(
    context: Context,
    pool: Pool,
    data: Artifact,
    models: Mapping[str, Artifact],
    diagonals: Mapping[str, Artifact],
    settings: MergeConfig,
) -> Artifact:
    """One model out of several; what the settings leave open is chosen on the validation split."""
    run = f"merge/{settings.method}"
    uses = diagonals if METHODS[settings.method].needs_diagonals else {}
    filter_seen = context.config.evaluation.filter_seen
    inputs = {
        "data": data.digest,
        "models": [model_digest(model) for model in models.values()],
        "diagonals": [diagonal.digest for diagonal in uses.values()],
    }
    configuration = {**asdict(settings), "filter_seen": filter_seen}
    found = context.find("merge", run, inputs=inputs, configuration=configuration)
    if found is not None:
        return found
    with context.make("merge", run, inputs=inputs, configuration=configuration) as making:
        first, *_ = models.values()
        urls = tuple(model.file("model") for model in models.values())
        diagonal_urls = tuple(diagonal.url for diagonal in uses.values())
        trials: list[dict[str, object]] = []

        def candidate(setting: MergeSetting, point: Point) -> Candidate:
            return Candidate(urls, diagonal_urls, settings.method, point, setting)

        def score(setting: MergeSetting, point: Point) -> float:
            value = validate(pool, candidate(setting, point), partitions_of(data), filter_seen=filter_seen)
            trials.append({"coefficients": point, **asdict(setting), "score": value})
            making.tell("trial.ndcg@10", value, step=len(trials))
            making.progress(min(len(trials), settings.budget - 0.5), settings.budget, f"validation NDCG@10 {value:.4f}")
            return value

        making.progress(0, settings.budget)
        setting, point, best = choose(score, settings, members=len(models))
        module = merged_model(candidate(setting, point)).cpu()
        save_model(module, making.folder / "model", items_url=first.file("model", ITEMS_FILE))
        making.draft.write_json("trials.json", trials)
        chosen = {"method": settings.method, "coefficients": list(point), **asdict(setting)}
        making.counts.update({**chosen, SCORE: best})
        making.tell(SCORE, best)
        making.progress(1, 1, f"validation NDCG@10 {best:.4f} of {len(trials)} candidates")
    return context.committed("merge", inputs, configuration)


def check_coefficients(settings: MergeConfig, members: int) -> None:
    """Raise ConfigError if coefficients are given, but not one for each member."""
    given = settings.coefficients
    if not isinstance(given, str) and len(given) != members:
        raise ConfigError(f"merge.coefficients must be one for each of {members} models, got {len(given)}")


def check_mergeable(models: Mapping[str, Artifact], diagonals: Mapping[str, Artifact]) -> None:
    """Raise MergeError unless catalogues and settings agree and each diagonal is of its model and like the others."""
    first = next(iter(models))
    for name, model in models.items():
        if model.manifest["files"]["model/items.parquet"] != models[first].manifest["files"]["model/items.parquet"]:
            raise MergeError(f"{first} and {name} are of different catalogues: their item indices mean different items")
        ours, theirs = models[first].json("model", "config.json"), model.json("model", "config.json")
        for key in ours:
            if ours[key] != theirs.get(key):
                raise MergeError(f"{first} and {name} differ in encoder.{key}: {ours[key]} and {theirs.get(key)}")
    for name, diagonal in diagonals.items():
        if diagonal.manifest["inputs"]["model"] != model_digest(models[name]):
            raise MergeError(f"{diagonal.url} is the diagonal of another model than {models[name].url}")
        if diagonal.manifest["configuration"] != diagonals[first].manifest["configuration"]:
            raise MergeError(
                f"the diagonals of {first} and {name} were estimated in different ways: they do not compare"
            )


def choose(score: Scorer, settings: MergeConfig, *, members: int) -> tuple[MergeSetting, Point, float]:
    """The setting and the coefficients with the best score; what is given is not searched."""
    candidates = settings.settings()
    if settings.coefficients == "search":
        choice = search_settings(score, candidates, members, budget=settings.budget)
        return choice.setting, choice.found.coefficients, choice.found.score
    point = (1 / members,) * members if settings.coefficients == "equal" else tuple(settings.coefficients)
    scores = {setting: score(setting, point) for setting in candidates}
    best = max(candidates, key=scores.__getitem__)
    return best, point, scores[best]
