import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vidbridge.algo.advantages import AdvantageScale, degenerate, group_advantages

EVERY = list(AdvantageScale)
reward = st.floats(-2, 2).map(lambda value: round(value, 2))


NAN = float("nan")


def advantages(rewards, scale, **options):
    """What is nan is not scored."""
    rewards = torch.tensor(rewards)
    return group_advantages(rewards, ~rewards.isnan(), scale, **options)


def test_none_is_the_distance_from_the_mean():
    # mean (0 + 1 + 2) / 3 = 1
    assert advantages([[0.0, 1.0, 2.0]], AdvantageScale.none).tolist() == [[-1.0, 0.0, 1.0]]


def test_group_std():
    # mean 1/2, variance 4 * (1/4) / 3 = 1/3, std 0.577350; 0.5 / (0.577350 + 0.0001) = 0.865876
    got = advantages([[1.0, 1.0, 0.0, 0.0]], AdvantageScale.group_std)
    assert got[0].tolist() == pytest.approx([0.865876, 0.865876, -0.865876, -0.865876], abs=1e-6)


def test_group_std_makes_a_small_difference_as_loud_as_a_large_one_up_to_eps():
    # [0, 0.1]: std 0.0707107, 0.05 / 0.0708107 = 0.706108; [0, 1]: std 0.7071068, 0.5 / 0.7072068 = 0.707007
    got = advantages([[0.0, 0.1], [0.0, 1.0]], AdvantageScale.group_std)
    assert got[:, 1].tolist() == pytest.approx([0.706108, 0.707007], abs=1e-6)


def test_batch_std():
    # all rewards 0 2 1 2: mean 5/4, squares 25/16 + 9/16 + 1/16 + 9/16 = 44/16, variance 44/48, std 0.957427
    # first group is 1 off its own mean: 1 / 0.957527 = 1.044357; the second half of that
    got = advantages([[0.0, 2.0], [1.0, 2.0]], AdvantageScale.batch_std)
    assert got.flatten().tolist() == pytest.approx([-1.044357, 1.044357, -0.522178, 0.522178], abs=1e-6)


def test_eps_can_be_chosen():
    # 0.5 / (0.7071068 + 1) = 0.292893
    assert advantages([[0.0, 1.0]], AdvantageScale.group_std, eps=1.0)[0, 1].item() == pytest.approx(0.292893, abs=1e-6)


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
    rewards = torch.tensor([[0.0, 7.0, 1.0, 1.0], [2.0, 0.5, 0.0, NAN]])
    scored = torch.tensor([[True, False, True, True], [True, True, True, False]])
    got = group_advantages(rewards, scored, scale)  # whatever stands in the place of what is not scored
    assert got[0, 1] == got[1, 3] == 0
    assert got[scored].tolist() == pytest.approx(alone.flatten().tolist())


@pytest.mark.parametrize("scale", EVERY)
def test_one_scored_completion_among_unscored_ones_has_nobody_to_beat(scale):
    assert (advantages([[NAN, 3.0, NAN], [0.7, 0.7, NAN]], scale) == 0).all()


@pytest.mark.parametrize("scale", EVERY)
def test_a_single_completion_has_nobody_to_beat(scale):
    assert (advantages([[3.0], [1.0]], scale) == 0).all()


def test_degenerate():
    rewards = torch.tensor([[0.7] * 3, [0.7, 0.7, 0.8], [-1.0] * 3])
    assert degenerate(rewards, torch.ones(3, 3, dtype=torch.bool)).tolist() == [True, False, True]
    scored = torch.tensor([[True] * 3, [True, True, False], [False] * 3])
    assert degenerate(rewards, scored).tolist() == [True, True, True]


groups = st.lists(st.lists(reward, min_size=4, max_size=4), min_size=1, max_size=4)


@given(groups, st.sampled_from(EVERY), st.floats(-3, 3))
def test_identities(rewards, scale, shift):
    rewards = torch.tensor(rewards, dtype=torch.float64)
    scored = torch.ones(rewards.shape, dtype=torch.bool)
    got = group_advantages(rewards, scored, scale)
    assert got.dtype == torch.float32
    # siblings sum to zero, the order of rewards is kept, and a constant for all changes nothing
    torch.testing.assert_close(got.sum(1), torch.zeros(len(rewards)), atol=1e-5, rtol=0)
    for values, row in zip(rewards, got):
        assert (row[values.argsort()].diff() >= 0).all()
    torch.testing.assert_close(group_advantages(rewards + shift, scored, scale), got, atol=1e-5, rtol=1e-5)
    # no group depends on where it stands
    torch.testing.assert_close(group_advantages(rewards.flip(0), scored, scale).flip(0), got)
