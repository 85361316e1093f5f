import pytest

from vidbridge.data.prefetch import Prefetch


def test_right_answers_in_any_order_and_nothing_loaded_twice_in_order():
    loaded = []

    def load(step):
        loaded.append(step)
        return step * step

    ahead = Prefetch(load)
    assert [ahead(step) for step in (0, 1, 2, 3)] == [0, 1, 4, 9]
    assert ahead(10) == 100 and ahead(2) == 4
    assert loaded[:4] == [0, 1, 2, 3]


def test_nothing_is_loaded_beyond_the_last_step():
    loaded = []
    ahead = Prefetch(loaded.append, last=2)
    for step in range(3):
        ahead(step)
    ahead._pool.shutdown()  # waits for whatever was begun
    assert loaded == [0, 1, 2]


def test_an_error_reaches_the_step_that_asks_for_it():
    def load(step):
        if step == 1:
            raise ValueError("row 1 is broken")
        return step

    ahead = Prefetch(load)
    assert ahead(0) == 0
    with pytest.raises(ValueError, match="row 1"):
        ahead(1)
    assert ahead(2) == 2
