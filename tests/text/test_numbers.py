import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidbridge.text.numbers import read_number, same_number

SAME = [
    # in every dress
    ("3", "3"), ("3.0", "3"), ("03", "3"), ("+3", "3"), (".5", "0.5"), ("3.", "3"), ("(3)", "3"),
    ("[3]", "3"), ("**3**", "3"),
    ("$3$", "3"), (r"\boxed{3}", "3"), (r"$\boxed{3}$", "3"), ("-3", "-3"), ("−3", "-3"), ("- 3", "-3"),
    ("１２", "12"),
    ("1,000", "1000"), ("1,234,567", "1234567"), ("$1,234.56", "1234.56"), ("€5", "5"), ("5€", "5"),
    ("3rd", "3"),
    # with a unit, in a sentence
    ("12 cm", "12"), ("12cm", "12"), ("about 12 seconds", "12"), ("The answer is 3.", "3"), ("x=3", "3"),
    ("3 times", "3"),
    ("Answer: -2 degrees", "-2"), ("three", "3"), ("There are twelve.", "12"), ("Zero birds.", "0"),
    ("Two, yes, two.", "2"),
    # the last that is stated
    ("3, no 4", "4"), ("not 3 but 4", "4"), ("4, not 3", "4"), ("It is 4 (not 3)", "4"),
    ("It isn't 3, it's 4", "4"),
    ("4 rather than 3", "4"), ("3 out of 4", "4"), ("Step 1: 2. Step 2: 5. The answer is 5", "5"),
    (r"3, so \boxed{4}, not 5", "4"),
    # fractions, powers and the like
    ("1/2", "0.5"), (r"\frac{1}{2}", "0.5"), (r"\dfrac{3}{4}", "0.75"), (r"-\frac{1}{2}", "-0.5"),
    ("1 1/2", "1.5"),
    ("-1 1/2 cups", "-1.5"), ("0.75", "3/4"), ("2/4", "1/2"), ("2^3", "8"), ("10**2", "100"),
    (r"2^{-1}", "0.5"), ("1e3", "1000"),
    ("1.5e-2", "0.015"), (r"3 \times 10^{2}", "300"), ("3 x 10^2", "300"), (r"\sqrt{4}", "2"),
    (r"2\sqrt{4}", "4"), (r"2\pi", "2π"),
    ("6.283185", r"2\pi"), ("50%", "0.5"), ("50 %", "50"), ("5 percent", "0.05"), (r"50\%", "1/2"),
    ("0.5", "50%"), ("50%", "50 percent"),
]  # fmt: skip
OTHER = [
    ("13", "3"), ("3.1", "3"), ("30", "3"), ("-3", "3"), ("0.333", "1/3"), ("3.14", "3.14159"),
    ("1/3", "0.5"), ("50%", "0.5%"),
    ("", "3"), ("none", "3"), ("infinity", "3"), ("v3", "3"), ("B2", "2"), ("[MASK3]", "3"),
    # several, and none of them chosen
    ("2 or 3", "3"), ("3, 4", "4"), ("3-4", "4"), ("3 to 4", "4"), ("between 3 and 4", "4"), ("3:30", "30"),
    ("2020-01-03", "3"),
    ("two or three", "3"), ("1/2/3", "3"), ("not 3", "3"), ("It is never 3.", "3"), ("1, 2, 3, 4", "4"),
]  # fmt: skip


@pytest.mark.parametrize("answer, reference", SAME)
def test_the_same(answer, reference):
    assert same_number(answer, reference)


@pytest.mark.parametrize("answer, reference", OTHER)
def test_another_or_none(answer, reference):
    assert not same_number(answer, reference)


def test_a_reference_without_a_number_is_an_error():
    with pytest.raises(ValueError, match="no number in the reference 'many'"):
        same_number("3", "many")


@pytest.mark.parametrize(
    "answer", ["9^9^9^9^9", "9" * 100_000, "9**99**99", "1/" * 50_000, "10^" * 50_000, r"\frac{" * 20_000]
)
def test_nothing_keeps_the_algebra_busy(answer):
    assert same_number(answer, "3") is False


DRESSES = ["{}", "{:,}", "It is {}.", "{} apples", r"\boxed{{{}}}", "3, no, {}", "**{}**"]


@given(st.integers(-(10**9), 10**9), st.sampled_from(DRESSES))
def test_every_integer_in_every_dress(number, dress):
    assert same_number(dress.format(number), str(number))
    assert not same_number(dress.format(number), str(number + 1))


@given(st.integers(-999, 999), st.integers(1, 99))
def test_a_fraction_is_its_value(upper, lower):
    assert same_number(f"{upper}/{lower}", rf"\frac{{{upper * 3}}}{{{lower * 3}}}".replace(r"\frac{-", r"-\frac{"))


@given(st.text())
def test_any_text_is_read(text):
    assert read_number(text) is None or same_number(text, text)
