"""Visibility: padding, segments, causality, and what folds into the bias."""

import pytest
import torch

from t5_experimental.visibility_t5_experimental import causal_positions, inputless_queries, masked_bias, visibility


def visible_positions(*arguments):
    return visibility(*arguments).all_rows(torch.device("cpu"))


def test_padding_mask():
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    visible = visible_positions(mask, None, None, 2, 3)
    assert visible.shape == (2, 1, 1, 3)
    assert visible[:, 0, 0].tolist() == [[True, True, False], [False, True, True]]


def test_short_mask_leaves_free_room_of_a_cache_hidden():
    visible = visible_positions(torch.ones(1, 2), None, None, 1, 4)
    assert visible[0, 0, 0].tolist() == [True, True, False, False]


def test_segments_see_only_themselves():
    queries, keys = torch.tensor([[1, 2, 0]]), torch.tensor([[1, 1, 2, 0]])
    visible = visible_positions(None, queries, keys, 3, 4)
    assert visible[0, 0].tolist() == [
        [True, True, False, False],
        [False, False, True, False],
        [False, False, False, True],
    ]


def test_masks_with_queries():
    three = torch.tensor([[[1, 0], [1, 1]]])
    four_bool = three[:, None].bool()
    four_float = torch.where(four_bool, 0.0, torch.finfo(torch.float32).min)
    infinite = torch.where(four_bool, 0.0, float("-inf"))
    foreign = torch.where(four_bool, 0.0, torch.finfo(torch.float16).min)
    customary = torch.where(four_bool, 0.0, -1e4)
    for mask in (three, four_bool, four_float, infinite, foreign, customary, customary[:, 0], three.bool()):
        assert visible_positions(mask, None, None, 2, 2)[0, 0].tolist() == [[True, False], [True, True]]


def test_floats_that_cannot_be_added_are_refused():
    with pytest.raises(ValueError, match="cannot have values above 0"):
        visible_positions(torch.ones(1, 1, 2, 2), None, None, 2, 2)


@pytest.mark.parametrize("shape", [(1, 5), (1, 3, 4), (1, 1, 2, 3)])
def test_a_mask_that_does_not_fit_is_refused(shape):
    with pytest.raises(ValueError, match="does not fit 2 queries and 4 keys"):
        visible_positions(torch.ones(shape, dtype=torch.long), None, None, 2, 4)


def test_segments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="Segment ids of lengths 3 and 4 do not fit"):
        visible_positions(None, torch.ones(1, 3), torch.ones(1, 4), 2, 4)


def test_causal_positions():
    device = torch.device("cpu")
    assert causal_positions(1, 6, 5, device) is None
    assert causal_positions(2, 4, 2, device)[0, 0].tolist() == [[True, True, True, False], [True] * 4]
    # A cache of fixed size has more room than positions, and counts them in a tensor.
    assert causal_positions(1, 4, torch.tensor(1), device)[0, 0].tolist() == [[True, True, False, False]]


def test_targets_without_inputs_are_found():
    targets = torch.tensor([[1, 2, 0], [1, 2, 0]])

    def found(keys, mask=None):
        inputless = inputless_queries(visibility(mask, targets, torch.tensor(keys), 3, 3))
        return None if inputless is None else inputless.tolist()

    assert found([[1, 1, 2], [2, 1, 2]]) is None
    assert found([[1, 2, 2], [1, 1, 0]]) == [[False, False, False], [False, True, False]]
    assert found([[1, 2, 2], [1, 1, 2]], torch.tensor([[1, 1, 1], [0, 1, 0]])) == [[False] * 3, [False, True, False]]
    assert inputless_queries(visibility(torch.zeros(2, 3), None, None, 3, 3)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masked_bias_hides_and_stays_finite(dtype):
    bias = torch.full((1, 2, 1, 3), -30.0, dtype=dtype)
    visible = torch.tensor([True, False, False])
    hidden = masked_bias(bias, visible)
    weights = (hidden + torch.full_like(hidden, -100.0)).softmax(-1)
    assert weights[..., 1:].eq(0).all()
    nothing = masked_bias(bias, torch.zeros(3, dtype=torch.bool)) + torch.full_like(bias, -100.0)
    assert nothing.softmax(-1).isfinite().all()
    assert masked_bias(torch.zeros((), dtype=dtype), visible).dtype == dtype
