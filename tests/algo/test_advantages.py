from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vidbridge.algo.advantages import SCALES, batch_std, degenerate, group_advantages, group_std, no_scale

EVERY = list(SCALES.values())
reward = st.floats(-2, 2).map(lambda value: round(value, 2))


NAN = float("nan")


def advantages(rewards, scale):
    return group_advantages(torch.tensor(rewards), scale)


def test_none_is_the_distance_from_the_mean():
    # mean (0 + 1 + 2) / 3 = 1
    assert advantages([[0.0, 1.0, 2.0]], no_scale).tolist() == [[-1.0, 0.0, 1.0]]


def test_group_std():
    # mean 1/2, variance 4 * (1/4) / 3 = 1/3, std 0.577350; 0.5 / (0.577350 + 0.0001) = 0.865876
    got = advantages([[1.0, 1.0, 0.0, 0.0]], group_std)
    assert got[0].tolist() == pytest.approx([0.865876, 0.865876, -0.865876, -0.865876], abs=1e-6)


def test_group_std_makes_a_small_difference_as_loud_as_a_large_one_up_to_eps():
    # [0, 0.1]: std 0.0707107, 0.05 / 0.0708107 = 0.706108; [0, 1]: std 0.7071068, 0.5 / 0.7072068 = 0.707007
    got = advantages([[0.0, 0.1], [0.0, 1.0]], group_std)
    assert got[:, 1].tolist() == pytest.approx([0.706108, 0.707007], abs=1e-6)


def test_batch_std():
    # all rewards 0 2 1 2: mean 5/4, squares 25/16 + 9/16 + 1/16 + 9/16 = 44/16, variance 44/48, std 0.957427
    # first group is 1 off its own mean: 1 / 0.957527 = 1.044357; the second half of that
    got = advantages([[0.0, 2.0], [1.0, 2.0]], batch_std)
    assert got.flatten().tolist() == pytest.approx([-1.044357, 1.044357, -0.522178, 0.522178], abs=1e-6)


def test_eps_can_be_chosen():
    # 0.5 / (0.7071068 + 1) = 0.292893
    assert advantages([[0.0, 1.0]], partial(group_std, eps=1.0))[0, 1].item() == pytest.approx(0.292893, abs=1e-6)


@pytest.mark.parametrize("scale", EVERY)
def test_equal_rewards_are_exactly_zero(scale):
    # float32 arithmetic gives 6e-4 for eight times 0.7; 0.1 + 0.2 and 0.3 differ in the last bit only
    got = advantages([[0.7] * 8, [0.1 + 0.2] * 4 + [0.3] * 4, [0.0] * 7 + [1.0]], scale)
    assert (got[:2] == 0).all() and (got[2] != 0).all()


@pytest.mark.parametrize("scale", EVERY)
def test_an_unscored_group_is_zero_and_changes_no_other(scale):
    alone = advantages([[0.0, 1.0], [2.0, 0.5]], scale)
    beside = advantages([[0.0, 1.0], [NAN, NAN], [2.0, 0.5]], scale)
    assert (beside[1] == 0).all()
    assert torch.equal(beside[[0, 2]], alone)


@pytest.mark.parametrize("scale", EVERY)
def test_nothing_scored_at_all_is_all_zero(scale):
    assert (advantages([[NAN, NAN]], scale) == 0).all()


@pytest.mark.parametrize("scale", EVERY)
def test_an_unscored_completion_is_zero_and_its_siblings_are_compared_without_it(scale):
    alone = advantages([[0.0, 1.0, 1.0], [2.0, 0.5, 0.0]], scale)
    rewards = torch.tensor([[0.0, NAN, 1.0, 1.0], [2.0, 0.5, 0.0, NAN]])
    got = group_advantages(rewards, scale)
    assert got[0, 1] == got[1, 3] == 0
    assert got[~rewards.isnan()].tolist() == pytest.approx(alone.flatten().tolist())


@pytest.mark.parametrize("scale", EVERY)
def test_one_scored_completion_among_unscored_ones_has_nobody_to_beat(scale):
    assert (advantages([[NAN, 3.0, NAN], [0.7, 0.7, NAN]], scale) == 0).all()


@pytest.mark.parametrize("scale", EVERY)
def test_a_single_completion_has_nobody_to_beat(scale):
    assert (advantages([[3.0], [1.0]], scale) == 0).all()


def test_degenerate():
    assert degenerate(torch.tensor([[0.7] * 3, [0.7, 0.7, 0.8], [-1.0] * 3])).tolist() == [True, False, True]
    assert degenerate(torch.tensor([[0.7, 0.7, NAN], [NAN] * 3, [0.1, NAN, 0.2]])).tolist() == [True, True, False]


def test_a_scale_of_ones_own_knows_the_task_of_each_group():
    """Two tasks, one paid ten times as much; divided by the widest reward of its task both are alike."""

    def widest_of_task(rewards, scored, tasks):
        return torch.stack([rewards[tasks == task].amax() for task in tasks])[:, None]

    rewards = torch.tensor([[0.0, 1.0], [0.0, 10.0], [0.0, 0.5], [0.0, 5.0]])
    got = group_advantages(rewards, widest_of_task, torch.tensor([0, 1, 0, 1]))
    assert got[:, 1].tolist() == [0.5, 0.5, 0.25, 0.25]


groups = st.lists(st.lists(reward, min_size=4, max_size=4), min_size=1, max_size=4)


@given(groups, st.sampled_from(EVERY), st.floats(-3, 3))
def test_identities(rewards, scale, shift):
    rewards = torch.tensor(rewards, dtype=torch.float64)
    got = group_advantages(rewards, scale)
    assert got.dtype == torch.float32
    # siblings sum to zero, the order of rewards is kept, and a constant for all changes nothing
    torch.testing.assert_close(got.sum(1), torch.zeros(len(rewards)), atol=1e-5, rtol=0)
    for values, row in zip(rewards, got):
        assert (row[values.argsort()].diff() >= 0).all()
    torch.testing.assert_close(group_advantages(rewards + shift, scale), got, atol=1e-5, rtol=1e-5)
    # no group depends on where it stands
    torch.testing.assert_close(group_advantages(rewards.flip(0), scale).flip(0), got)
