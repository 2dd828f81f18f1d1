import oracles_evaluation as oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raymerge.evaluation.draws import open_uniform, poisson
from raymerge.splitmix import Stream

WORDS = st.integers(-(2**63), 2**63 - 1)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), key=WORDS, counter=WORDS)
def test_numbers_equal_the_reference_hash_on_python_integers(seed: int, key: int, counter: int) -> None:
    found = open_uniform(seed, Stream.BOOTSTRAP, torch.tensor([key]), torch.tensor([counter]))
    assert found.item() == oracles.uniform(seed, Stream.BOOTSTRAP, key, counter)
    assert 0 < found.item() < 1


def test_streams_seeds_and_keys_give_other_numbers() -> None:
    keys, counters = torch.arange(50)[:, None], torch.arange(50)
    drawn = [open_uniform(seed, stream, keys, counters) for seed in (0, 1, 2) for stream in Stream]
    everything = torch.cat([numbers.flatten() for numbers in drawn])
    assert len(everything.unique()) == len(everything)


def test_numbers_are_uniform_and_uncorrelated_across_keys_and_counters() -> None:
    numbers = open_uniform(3, Stream.RANKED_NEGATIVES, torch.arange(1000)[:, None], torch.arange(1000))
    share = torch.histc(numbers, bins=20, min=0, max=1) / numbers.numel()
    assert share.sub(0.05).abs().max() < 0.001
    centred = numbers - 0.5
    for neighbour in (centred[1:] * centred[:-1], centred[:, 1:] * centred[:, :-1]):
        assert abs(neighbour.mean().item()) * 12 < 0.005  # five standard errors of a correlation of 0


def test_poisson_weights_have_the_probabilities_of_mean_one() -> None:
    weights = poisson(0, Stream.BOOTSTRAP, torch.arange(1000)[:, None], torch.arange(1000))
    assert weights.mean().item() == pytest.approx(1, abs=0.005)
    assert weights.var().item() == pytest.approx(1, abs=0.01)
    for value, probability in enumerate([0.36788, 0.36788, 0.18394, 0.06131]):
        assert (weights == value).double().mean().item() == pytest.approx(probability, abs=0.0025)
