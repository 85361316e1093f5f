"""Dealing things to ranks, and what ranks tell each other; what needs several real ranks is in test_step_ranks.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidbridge.runtime import collectives

COSTS = st.lists(st.floats(0, 1000), min_size=1, max_size=40)


@given(COSTS, st.integers(1, 8))
def test_everything_is_dealt_once_and_numbers_are_about_equal(costs, num_hands):
    hands = collectives.deal(costs, num_hands)
    assert sorted(index for hand in hands for index in hand) == list(range(len(costs)))
    assert len(hands) == num_hands
    assert max(map(len, hands)) == -(-len(costs) // num_hands)
    if len(costs) >= num_hands:
        assert min(map(len, hands)) >= 1, "a rank without a prompt would have nothing to learn with"


@given(COSTS, st.integers(1, 8))
def test_no_hand_costs_more_than_the_dearest_thing_above_another_with_room(costs, num_hands):
    """The dearest first, each to the cheapest hand: only a full hand may be left behind by more than one thing."""
    hands = collectives.deal(costs, num_hands)
    spent = [sum(costs[index] for index in hand) for hand in hands]
    room = max(map(len, hands))
    open_hands = [cost for cost, hand in zip(spent, hands) if len(hand) < room]
    if open_hands:
        assert max(spent) - min(open_hands) <= max(costs) + 1e-6


@given(st.dictionaries(st.integers(0, 100), st.text()))
def test_alone_everything_is_ones_own(things):
    def unused(*_):
        raise AssertionError("alone, nothing is sent and nothing is compared")

    assert collectives.gather_by_index(things, lighten=unused) == [things[number] for number in sorted(things)]
    assert collectives.my_share(len(things), cost=unused) == list(range(len(things)))


def test_ranks_take_their_share_of_what_all_deal(monkeypatch):
    """Costs 5, 1, 1, 5 in two hands of 6 each: the dear ones apart."""
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(collectives, "rank", lambda rank=rank: rank)
        shares.append(collectives.my_share(4, cost=[5.0, 1.0, 1.0, 5.0].__getitem__))
    assert shares == [[0, 1], [2, 3]]


def test_an_error_passes_through_alone():
    with pytest.raises(KeyError, match="gone"):
        with collectives.fail_together():
            raise KeyError("gone")


def test_what_must_go_before_the_ranks_part_goes_once_the_last_first():
    gone = []
    collectives.before_leaving(lambda: gone.append("first"))
    collectives.before_leaving(lambda: gone.append("second"))
    collectives.destroy()
    assert gone == ["second", "first"]
    collectives.destroy()
    assert gone == ["second", "first"]
