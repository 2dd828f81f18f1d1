"""Naive versions of raymerge.merging, to be checked against the formulas by eye. Plain Python on lists of numbers."""


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def scaled(diagonals: list[dict[str, list[float]]], normalise: str) -> list[dict[str, list[float]]]:
    """Diagonals divided by their model's overall mean, by their tensor's mean, or by nothing."""
    result = []
    for diagonal in diagonals:
        overall = mean([value for tensor in diagonal.values() for value in tensor])
        divisors = {"none": lambda tensor: 1, "model": lambda tensor, o=overall: o, "tensor": mean}
        by = divisors[normalise]
        result.append({name: [value / (by(tensor) or 1) for value in tensor] for name, tensor in diagonal.items()})
    return result


def fisher(
    models: list[dict[str, list[float]]],
    diagonals: list[dict[str, list[float]]],
    coefficients: list[float],
    normalise: str,
    epsilon: float,
    power: float = 1.0,
) -> dict[str, list[float]]:
    """Entry by entry: Σ λ (F^α + ε) θ / Σ λ (F^α + ε), or Σ λ θ / Σ λ where the former is 0 / 0."""
    merged = {}
    weights = [
        {name: [value**power for value in tensor] for name, tensor in diagonal.items()}
        for diagonal in scaled(diagonals, normalise)
    ]
    for name in models[0]:
        floor = epsilon * mean([value for diagonal in weights for value in diagonal[name]])
        merged[name] = []
        for k in range(len(models[0][name])):
            above = below = 0.0
            for model, diagonal, coefficient in zip(models, weights, coefficients, strict=True):
                weight = coefficient * (diagonal[name][k] + floor)
                above += weight * model[name][k]
                below += weight
            if below == 0:
                pairs = list(zip(coefficients, models, strict=True))
                above, below = sum(c * model[name][k] for c, model in pairs), sum(coefficients)
            merged[name].append(above / below)
    return merged
