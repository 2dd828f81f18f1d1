from typing import Any

import oracles_merging as oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from raymerge.errors import ConfigError, MergeError, UnknownNameError
from raymerge.merging import methods, weights
from raymerge.merging.methods import METHODS, MergeConfig, MergeMethod, MergeSetting, merge, shares
from raymerge.models.encoder import EncoderConfig, SequenceEncoder

SHAPES = {"a": 3, "b": 1, "c": 4}
NUMBER = st.floats(-10, 10)
KNOWLEDGE = st.just(0.0) | st.floats(1e-8, 1e3)


Model = dict[str, list[float]]
Members = tuple[list[Model], list[Model], list[float]]


@st.composite
def members(draw: st.DrawFn) -> Members:
    """Two to four models of three small tensors, with their diagonals (many zeros) and coefficients."""
    count = draw(st.integers(2, 4))

    def tensors(values: st.SearchStrategy[float]) -> list[Model]:
        return [{n: draw(st.lists(values, min_size=s, max_size=s)) for n, s in SHAPES.items()} for _ in range(count)]

    coefficients = draw(st.lists(st.just(0.0) | st.floats(0.01, 5), min_size=count, max_size=count).filter(any))
    return tensors(NUMBER), tensors(KNOWLEDGE), coefficients


def double(rows: list[Model]) -> list[dict[str, Tensor]]:
    return [{name: torch.tensor(values, dtype=torch.float64) for name, values in row.items()} for row in rows]


@settings(max_examples=80, deadline=None)
@given(
    members(),
    st.sampled_from(["none", "model", "tensor"]),
    st.sampled_from([0.0, 1e-6, 0.1, 10.0]),
    st.sampled_from([0.5, 1, 2]),
)
def test_fisher_merge_equals_its_naive_twin(drawn: Members, normalise: str, epsilon: float, power: float) -> None:
    models, diagonals, coefficients = drawn
    settings = {"coefficients": coefficients, "normalise": normalise, "epsilon": epsilon, "power": power}
    found = merge(double(models), double(diagonals), **settings)
    expected = oracles.fisher(models, diagonals, coefficients, normalise, epsilon, power)
    for name, values in expected.items():
        assert found[name].tolist() == pytest.approx(values, rel=1e-9, abs=1e-9), name


@settings(max_examples=40, deadline=None)
@given(members())
def test_average_equals_fisher_with_equal_diagonals_and_with_a_huge_floor(drawn: Members) -> None:
    models, diagonals, coefficients = drawn
    average = merge(double(models), method="average", coefficients=coefficients)
    ones = [{name: torch.ones(size) for name, size in SHAPES.items()} for _ in models]
    equal = merge(double(models), ones, coefficients=coefficients)
    floored = merge(double(models), double(diagonals), coefficients=coefficients, epsilon=1e12)
    total = sum(coefficients)
    for name in SHAPES:
        by_hand = sum(c / total * m[name] for c, m in zip(coefficients, double(models), strict=True))
        for other in (average, equal, floored):
            assert torch.allclose(other[name], by_hand, rtol=1e-7, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(members(), st.floats(1e-3, 1e3))
def test_scaling_that_changes_nothing(drawn: Members, factor: float) -> None:
    models, diagonals, coefficients = drawn
    once = merge(double(models), double(diagonals), coefficients=coefficients)
    more = [c * factor for c in coefficients]
    scaled = [{name: tensor * factor for name, tensor in diagonal.items()} for diagonal in double(diagonals)]
    lopsided = [scaled[0], *double(diagonals)[1:]]
    for name in SHAPES:
        assert torch.allclose(merge(double(models), scaled, coefficients=more)[name], once[name], atol=1e-9)
    for normalise in ("model", "tensor"):
        options = {"coefficients": coefficients, "normalise": normalise}
        plain, scaled_one = (merge(double(models), d, **options) for d in (double(diagonals), lopsided))
        assert all(torch.allclose(plain[name], scaled_one[name], atol=1e-8) for name in SHAPES)


@settings(max_examples=40, deadline=None)
@given(members())
def test_a_merge_lies_between_its_members_and_shares_sum_to_one(drawn: Members) -> None:
    models, diagonals, coefficients = drawn
    found = merge(double(models), double(diagonals), coefficients=coefficients)
    for name in SHAPES:
        stacked = torch.stack([model[name] for model in double(models)])
        assert bool(((found[name] >= stacked.amin(0) - 1e-9) & (found[name] <= stacked.amax(0) + 1e-9)).all())
    for parts in shares(double(diagonals), coefficients=coefficients).values():
        assert sum(parts) == pytest.approx(1)
        assert [part == 0 for part in parts] == [c == 0 for c in coefficients]


def test_shares_of_a_hand_computed_case() -> None:
    diagonals = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([3.0, 0.0])}]
    assert shares(diagonals, epsilon=0)["w"] == pytest.approx([(0.25 + 0.5) / 2, (0.75 + 0.5) / 2])
    assert shares(diagonals, epsilon=0, normalise="model")["w"] == pytest.approx([0.5, 0.5])


def test_entries_without_information_take_the_weighted_mean() -> None:
    models = [{"w": torch.tensor([0.0, 0.0, 0.0])}, {"w": torch.tensor([4.0, 4.0, 4.0])}]
    diagonals = [{"w": torch.tensor([0.0, 1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0, 5.0])}]
    found = merge(models, diagonals, coefficients=[3, 1])["w"]
    assert found.tolist() == pytest.approx([1.0, 1.0, 4.0], abs=1e-4)
    nothing = [{"w": torch.zeros(3)}] * 2
    assert merge(models, nothing, coefficients=[3, 1])["w"].tolist() == [1, 1, 1]
    assert merge(models, nothing, coefficients=[0, 1], normalise="tensor")["w"].tolist() == [4, 4, 4]


def test_tensors_larger_than_a_block_are_merged_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    models, diagonals = ([{"w": torch.rand(7, 11, generator=generator)} for _ in range(3)] for _ in range(2))
    models[1]["w"] = models[1]["w"].T.contiguous().T  # strides do not matter
    whole, parts = merge(models, diagonals)["w"], shares(diagonals)["w"]
    for module in (weights, methods):
        monkeypatch.setattr(module, "ENTRIES_AT_ONCE", 10)
    assert merge(models, diagonals)["w"].equal(whole)
    assert whole.shape == (7, 11)
    assert shares(diagonals)["w"] == pytest.approx(parts, rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_results_have_the_dtype_of_the_parameters_and_float64_inside(dtype: torch.dtype) -> None:
    models = [{"w": torch.full((2,), value, dtype=dtype)} for value in (1.0, 2.0)]
    tiny = [{"w": torch.full((2,), value)} for value in (1e-30, 3e-30)]  # their products underflow in float32
    found = merge(models, tiny)["w"]
    assert found.dtype == dtype
    assert found.tolist() == pytest.approx([1.75, 1.75])


def encoder(seed: int = 0, num_items: int = 9, **changes: Any) -> SequenceEncoder:
    torch.manual_seed(seed)
    return SequenceEncoder(num_items, EncoderConfig(**{"dim": 8, "feed_forward": 16, "max_length": 6, **changes}))


def random_diagonal(module: nn.Module, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(p.shape, generator=generator) for name, p in module.named_parameters()}


def test_encoders_merge_into_one_that_loads_and_arguments_are_unchanged() -> None:
    modules = [encoder(seed) for seed in range(3)]
    diagonals = [random_diagonal(module, seed) for seed, module in enumerate(modules)]
    before = [{n: t.clone() for n, t in each.items()} for each in (*(m.state_dict() for m in modules), *diagonals)]
    found = merge(modules, diagonals, coefficients=[1, 2, 1])
    after = [*(module.state_dict() for module in modules), *diagonals]
    assert all(a[n].equal(b[n]) for a, b in zip(before, after, strict=True) for n in a)
    merged = encoder(9)
    merged.load_state_dict(found)
    history = torch.tensor([[0, 0, 3, 4, 5]])
    assert merged(history).isfinite().all()
    assert not any(tensor.requires_grad for tensor in found.values())
    same_in_state_dicts = merge([m.state_dict() for m in modules], diagonals, coefficients=[1, 2, 1])
    assert all(same_in_state_dicts[name].equal(tensor) for name, tensor in found.items())


def test_copies_of_one_model_merge_into_itself() -> None:
    module = encoder()
    diagonal = random_diagonal(module, 0)
    for count in (1, 3):
        for found in (merge([module] * count, [diagonal] * count), merge([module] * count, method="average")):
            assert all(torch.allclose(found[n], t, rtol=1e-7) for n, t in module.state_dict().items())
            assert all(found[n].data_ptr() != t.data_ptr() for n, t in module.state_dict().items())


class Tied(nn.Module):
    """A parameter with two names, and buffers."""

    def __init__(self, value: float, steps: int = 0) -> None:
        super().__init__()
        self.first = nn.Linear(1, 1, bias=False)
        self.second = nn.Linear(1, 1, bias=False)
        self.first.weight = self.second.weight = nn.Parameter(torch.tensor([[value]]))
        self.register_buffer("steps", torch.tensor(steps))


def test_tied_parameters_share_a_diagonal_and_equal_buffers_are_copied() -> None:
    models = [Tied(0.0), Tied(4.0)]
    diagonals = [{"first.weight": torch.tensor([[1.0]])}, {"first.weight": torch.tensor([[3.0]])}]
    found = merge(models, diagonals)
    assert found["first.weight"].item() == found["second.weight"].item() == pytest.approx(3.0, rel=1e-5)
    models[0].load_state_dict(found)
    assert merge([Tied(0.0), Tied(4.0)], method="average")["second.weight"].item() == 2
    assert found["steps"].item() == 0
    assert found["steps"].data_ptr() != models[0].steps.data_ptr()
    with pytest.raises(MergeError, match="models 1 and 2 differ in 'steps', which has no diagonal"):
        merge([Tied(0.0), Tied(4.0, steps=1)], method="average")


def test_parameters_without_a_diagonal_must_be_equal() -> None:
    models = [{"w": torch.zeros(1), "frozen": torch.ones(1)}, {"w": torch.ones(1), "frozen": torch.ones(1)}]
    diagonals = [{"w": torch.ones(1)}] * 2
    assert merge(models, diagonals)["frozen"].item() == 1
    models[1]["frozen"] = torch.zeros(1)
    with pytest.raises(MergeError, match="models 1 and 2 differ in 'frozen'"):
        merge(models, diagonals)


A, B = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
F = {"w": torch.ones(2)}


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([],), {}, "give at least 1 model, got 0"),
        (([A, B],), {}, "method 'fisher' needs the models' diagonals"),
        (([A, B], [F, F]), {"method": "average"}, "method 'average' uses no diagonals"),
        (([A, {"v": torch.ones(2)}],), {}, "model 1 has a tensor 'w' that model 2 lacks"),
        (([A, {**B, "v": torch.ones(2)}],), {}, "model 2 has a tensor 'v' that model 1 lacks"),
        (([A, B, {"w": torch.ones(3)}],), {}, r"models 1 and 3 differ in the shape of 'w': \(2,\) and \(3,\)"),
        (([A, {"w": torch.ones(2).double()}],), {}, "in the dtype of 'w': torch.float32 and torch.float64"),
        (([A, {"w": torch.tensor([0, torch.nan])}],), {}, "model 2 has values in 'w' that are not finite"),
        (([A, B], [F]), {}, "got 1 diagonals for 2 models"),
        (([A, B], [F, {}]), {}, "diagonal 1 has 'w' and diagonal 2 lacks it"),
        (([A, B], [F, {**F, "v": torch.ones(1)}]), {}, "diagonal 2 has 'v', which is not a parameter"),
        (([A, B], [F, {"w": torch.ones(3)}]), {}, r"diagonal 2 has shape \(3,\) for 'w', but the models have \(2,\)"),
        (([A, B], [F, {"w": torch.tensor([1.0, -2.0])}]), {}, "negative values in 'w', the lowest is -2"),
        (([A, B], [{"w": torch.tensor([1.0, torch.nan])}, F]), {}, "diagonal 1 has values in 'w' that are not finite"),
        (([A, B], [F, F]), {"coefficients": [1]}, "got 1 coefficients for 2 models"),
        (([A, B], [F, F]), {"coefficients": [1, -1]}, "at least 0, got -1 for model 2"),
        (([A, B], [F, F]), {"coefficients": [1, torch.inf]}, "finite and at least 0, got inf for model 2"),
        (([A, B], [F, F]), {"coefficients": [0, 0]}, "must not all be 0"),
        (([A, B], [F, F]), {"epsilon": -1}, "epsilon must be finite and at least 0, got -1"),
    ],
)
def test_unmergeable_models_are_refused_with_the_first_difference(
    arguments: tuple, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(MergeError, match=message) as caught:
        merge(*arguments, **options)
    assert "\n" not in str(caught.value)


OTHER_SETTINGS = {
    "attention": "causal",
    "max_length": 7,
    "dim": 16,
    "blocks": 1,
    "heads": 4,
    "feed_forward": 8,
    "dropout": 0.0,
    "activation": "relu",
    "norm": "post",
    "output_bias": False,
}


@pytest.mark.parametrize(("field", "other"), OTHER_SETTINGS.items())
def test_an_encoder_setting_that_differs_is_named(field: str, other: object) -> None:
    default = getattr(encoder().config, field)
    with pytest.raises(MergeError, match=f"models 1 and 2 differ in encoder.{field}: {default} and {other}"):
        merge([encoder(), encoder(**{field: other})], method="average")


def test_catalogues_of_different_sizes_are_refused() -> None:
    with pytest.raises(MergeError, match="models 1 and 2 have different catalogues: 9 and 12 items"):
        merge([encoder(), encoder(num_items=12)], method="average")


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="unknown merge method 'ties'; known: average, fisher"):
        merge([A, B], [F, F], method="ties")
    with pytest.raises(ConfigError, match="unknown normalisation 'layer'; known: none, model, tensor"):
        merge([A, B], [F, F], normalise="layer")


def test_a_method_registered_by_a_user_merges() -> None:
    METHODS.add("largest", MergeMethod(lambda values, coefficients: values.amax(dim=0), needs_diagonals=False))
    try:
        assert merge([A, B], method="largest")["w"].tolist() == [1, 1]
        assert MergeConfig(method="largest").options() == [MergeSetting()]
    finally:
        METHODS._entries.pop("largest")


def test_a_config_lists_the_settings_to_choose_from() -> None:
    names = ("none", "model", "tensor")
    assert MergeConfig().options() == [MergeSetting(name, 1e-6) for name in names]
    assert MergeConfig(normalise="model", epsilon=0.5).options() == [MergeSetting("model", 0.5)]
    assert len(MergeConfig(epsilon="search").options()) == 9
    assert [setting.power for setting in MergeConfig(normalise="none", power="search").options()] == [1.0, 0.5, 2.0]
    assert MergeConfig(method="average").options() == [MergeSetting()]
    assert MergeConfig(method="average", step=0.5).options() == [MergeSetting(step=0.5)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "ties"}, "unknown merge method 'ties'"),
        ({"normalise": "layer"}, "merge.normalise must be one of none, model, tensor, search, got 'layer'"),
        ({"coefficients": "best"}, "merge.coefficients must be numbers, equal or search, got 'best'"),
        ({"coefficients": (0.0, 0.0)}, "must not all be 0"),
        ({"coefficients": (1.0, -1.0)}, "got -1.0 for model 2"),
        ({"epsilon": "small"}, "merge.epsilon must be a number or search, got 'small'"),
        ({"epsilon": -1e-6}, "epsilon must be finite and at least 0"),
        ({"power": "sharp"}, "merge.power must be a number or search, got 'sharp'"),
        ({"power": 0}, "power must be finite and above 0, got 0"),
        ({"budget": 0}, "merge.budget must be between 1 and 1,000,000, got 0"),
        (
            {"coefficients": "search", "step": "search", "budget": 2},
            "merge.budget must be at least 5, a trial for each setting, got 2",
        ),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MergeConfig(**change)
