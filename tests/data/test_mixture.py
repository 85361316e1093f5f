from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from vidbridge.data.mixture import Mixture, apportion
from vidbridge.types import Sample


class Numbers:
    """A task whose samples are the numbers of their rows."""

    def __init__(self, name, size):
        self.name, self.size = name, size

    def __len__(self):
        return self.size

    def sample(self, index):
        return Sample(uid=f"{self.name}/{index % self.size}", task=self.name, question="", answer="", videos=())


TASKS = {"qa": Numbers("qa", 30), "caption": Numbers("caption", 50)}


def uids(mixture, steps):
    return [sample.uid for step in steps for sample in mixture.batch(step)]


def test_a_batch_is_a_function_of_seed_and_step_alone():
    one = Mixture(TASKS, {"qa": 1, "caption": 3}, prompts_per_step=7, seed=5)
    two = Mixture(TASKS, {"qa": 1, "caption": 3}, prompts_per_step=7, seed=5)
    forward = [uids(one, [step]) for step in range(30)]
    assert [uids(two, [step]) for step in reversed(range(30))] == forward[::-1]
    assert uids(Mixture(TASKS, {"qa": 1, "caption": 3}, prompts_per_step=7, seed=6), range(30)) != sum(forward, [])


def test_one_pass_holds_the_shares_and_every_row_comes_before_any_comes_again():
    mixture = Mixture(TASKS, {"qa": 1, "caption": 3}, prompts_per_step=8, seed=0)
    assert mixture.counts == {"caption": 60, "qa": 20}  # 80 rows in all
    first_pass = uids(mixture, range(10))
    assert Counter(uid.split("/")[0] for uid in first_pass) == {"caption": 60, "qa": 20}
    counts = Counter(first_pass)
    # 60 caption cards of 50 rows: all of them once, ten of them twice
    assert Counter(count for uid, count in counts.items() if uid.startswith("caption")) == {1: 40, 2: 10}
    # 20 qa cards a pass: after three passes each of the 30 rows was shown twice
    qa = Counter(uid for uid in uids(mixture, range(30)) if uid.startswith("qa"))
    assert set(qa.values()) == {2} and len(qa) == 30


def test_an_exact_total():
    assert Mixture(TASKS, {"qa": 1, "caption": 1}, prompts_per_step=1, seed=0, total=11).counts in (
        {"caption": 6, "qa": 5},
        {"caption": 5, "qa": 6},
    )


@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 100), min_size=1), st.integers(1, 10_000))
def test_apportioning_adds_up_and_is_off_by_less_than_one(shares, total):
    counts = apportion(shares, total)
    assert sum(counts.values()) == total
    for name, count in counts.items():
        assert abs(count - shares[name] / sum(shares.values()) * total) < 1 + 1e-6
