"""The encoder: padding, masks, direction, and states at chosen positions only."""

import pytest
import torch
from torch import Tensor

from raymerge.errors import ConfigError, InputError
from raymerge.models.dropout import Dropout
from raymerge.models.encoder import EncoderConfig, SequenceEncoder, pick

BOTH = pytest.mark.parametrize("attention", ["bidirectional", "causal"])


def make(attention: str = "bidirectional", **settings: object) -> SequenceEncoder:
    torch.manual_seed(0)
    config = EncoderConfig(attention=attention, max_length=8, dim=8, heads=2, feed_forward=16, **settings)
    return SequenceEncoder(20, config).double().eval()


def histories() -> Tensor:
    return torch.tensor([[0, 0, 0, 3, 7], [1, 2, 3, 4, 5], [0, 0, 0, 0, 20]])


@BOTH
@pytest.mark.parametrize("settings", [{}, {"norm": "post"}, {"distance_bias": True}])
def test_states_at_chosen_columns_equal_those_of_a_full_pass(attention: str, settings: dict[str, object]) -> None:
    encoder = make(attention, **settings)
    rows = encoder.input_rows(histories())
    at = torch.tensor([[3, 4], [0, 2], [4, 4]])
    everywhere = encoder.hidden_states(encoder.item_embedding(rows), rows != 0)
    chosen = encoder.hidden_states(encoder.item_embedding(rows), rows != 0, at)
    torch.testing.assert_close(chosen, pick(everywhere, at), rtol=0, atol=1e-12)


@BOTH
def test_left_padding_changes_nothing(attention: str) -> None:
    encoder = make(attention)
    padded = torch.nn.functional.pad(histories(), (2, 0))
    torch.testing.assert_close(encoder(padded), encoder(histories()), rtol=0, atol=1e-12)


@BOTH
def test_items_of_the_history_gain_the_shift_once(attention: str) -> None:
    torch.manual_seed(1)
    plain, encoder = make(attention), make(attention, repeat_direction=True)
    encoder.load_state_dict({**plain.state_dict(), "repeat_direction": torch.randn(8)})
    rows = torch.tensor([[0, 0, 3, 7, 3], [1, 1, 1, 1, 1], [0, 0, 0, 0, 20]])
    shift = encoder.encode(encoder.embed(rows), rows) @ encoder.repeat_direction
    had = torch.tensor([[item in row for item in range(1, 21)] for row in rows.tolist()])
    torch.testing.assert_close(encoder(rows), plain(rows) + had * shift[:, None])


@BOTH
def test_histories_beyond_max_length_keep_their_last_items(attention: str) -> None:
    encoder = make(attention)
    kept = 7 if attention == "bidirectional" else 8
    long = torch.arange(1, 16)[None]
    torch.testing.assert_close(encoder(long), encoder(long[:, -kept:]))


def test_causal_states_do_not_see_later_items() -> None:
    encoder = make("causal")
    rows = histories()
    later = rows.clone()
    later[:, -1] = 9
    before, after = (encoder.hidden_states(encoder.item_embedding(r), r != 0) for r in (rows, later))
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.equal(before[:, -1], after[:, -1])


@BOTH
def test_training_mode_attends_like_eval_mode_except_for_dropout(
    attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = make(attention, dropout=0.3)
    monkeypatch.setattr("raymerge.models.dropout.keep_scale", lambda like, rate: torch.ones_like(like))
    expected = encoder(histories())
    torch.testing.assert_close(encoder.train()(histories()), expected, rtol=0, atol=1e-12)
    assert any(part.active for part in encoder.modules() if isinstance(part, Dropout))


@BOTH
def test_rows_of_padding_give_finite_gradients(attention: str) -> None:
    encoder = make(attention, dropout=0.3).train()
    rows = histories()
    encoder.hidden_states(encoder.item_embedding(rows), rows != 0).square().sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in encoder.parameters())
    assert bool((encoder.item_embedding.weight.grad[0] == 0).all())


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ([[1, 0]], "must end with an item"),
        ([[0, 0]], "must end with an item"),
        ([[1, 21]], "must be in 0..20, found 21"),
        ([[-1, 2]], "must be in 0..20, found -1"),
    ],
)
def test_malformed_histories_are_refused(bad: list[list[int]], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        make()(torch.tensor(bad))


@pytest.mark.parametrize(("name", "value"), [("dim", 0), ("heads", 3), ("dropout", 1.0), ("max_length", 1)])
def test_impossible_settings_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"encoder\.{name}\b.*, got .*{value}"):
        EncoderConfig(**{name: value})


@BOTH
def test_chunks_hold_less_and_have_the_same_dropout_forward_and_backward(attention: str) -> None:
    encoder = make(attention, dropout=0.3).train()
    rows = histories()
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    def gradients(parts: int) -> tuple[list[torch.Tensor], int]:
        encoder.training_chunks = parts
        encoder.zero_grad()
        kept.clear()
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            x = encoder.item_embedding(rows)
            # one chunk after the other draws as all of them do, if each is a call of its own
            calls = [slice(None)] if parts > 1 else [slice(row, row + 1) for row in range(len(rows))]
            total = sum(encoder.hidden_states(x[some], rows[some] != 0).square().sum() for some in calls)
        total.backward()
        return [p.grad.clone() for p in encoder.parameters() if p.grad is not None], sum(kept)

    expected, whole = gradients(1)
    found, chunked = gradients(len(rows))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert chunked < whole / 4


@BOTH
def test_an_encoder_takes_over_given_parameters(attention: str) -> None:
    encoder = make(attention, distance_bias=True, repeat_direction=True)
    parameters, random = encoder.state_dict(), torch.get_rng_state()
    same = SequenceEncoder.of(20, encoder.config, parameters)
    assert torch.equal(torch.get_rng_state(), random)
    assert {name: p.data_ptr() for name, p in same.named_parameters()} == {
        n: p.data_ptr() for n, p in parameters.items()
    }
    assert all(p.requires_grad for p in same.parameters()) and not same.training
    assert torch.equal(same(histories()), encoder(histories()))
    with pytest.raises(RuntimeError, match="size mismatch"):
        SequenceEncoder.of(21, encoder.config, parameters)
    with pytest.raises(RuntimeError, match="output_bias"):
        SequenceEncoder.of(20, encoder.config, {n: p for n, p in parameters.items() if n != "output_bias"})
