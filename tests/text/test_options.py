import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidbridge.text.options import LETTERS, read_option

KINDS = ("moves left", "grows", "spins", "turns red")  # A B C D

CASES = [
    # the letter alone, in every dress
    ("B", "B"),
    ("b", "B"),
    (" b.", "B"),
    ("B.", "B"),
    ("(B)", "B"),
    ("(b)", "B"),
    ("[c]", "C"),
    ("{d}", "D"),
    ("**C**", "C"),
    ("_C_", "C"),
    ("`c`", "C"),
    ('"D"', "D"),
    ("'D'", "D"),
    ("$B$", "B"),
    (r"\boxed{B}", "B"),
    (r"\boxed{b}", "B"),
    (r"$\boxed{\text{C}}$", "C"),
    ("b)", "B"),
    ("B) grows", "B"),
    ("b: grows", "B"),
    ("B.grows", "B"),
    ("B grows", "B"),
    ("A", "A"),
    ("a", "A"),
    ("A.", "A"),
    ("(a)", "A"),
    # in a sentence
    ("The answer is B.", "B"),
    ("the answer is b", "B"),
    ("Answer: C", "C"),
    ("answer=c", "C"),
    ("Option D", "D"),
    ("option a is right", "A"),
    ("I choose b", "B"),
    ("It's B", "B"),
    ("B is correct because it grows", "B"),
    ("A is correct", "A"),
    ("A because it moves", "A"),
    ("The final answer is:\n\nB", "B"),
    ("So, \\boxed{A} is it", "A"),
    # the last one that is not rejected
    ("Not A. The answer is B.", "B"),
    ("not a. the answer is b.", "B"),
    ("The answer is B, not A.", "B"),
    ("B, not A", "B"),
    ("B not A", "B"),
    ("B rather than C", "B"),
    ("B instead of option C", "B"),
    ("It isn't A, it's D", "D"),
    ("It isn’t A but C", "C"),
    ("A is wrong, B is right.", "B"),
    ("B is right and A is wrong.", "B"),
    ("B is right; (A) and (C) are wrong", "B"),
    ("B. A and C are not possible", "B"),
    ("C, since B does not fit", "C"),
    ("C, since B doesn't fit", "C"),
    ("D, because A cannot be seen", "D"),
    ("It must be C: neither A nor B", "C"),
    ("It must be D: neither A, B nor C", "D"),
    ("Don't pick A, pick B", "B"),
    ("First I thought A, then B", "B"),
    ("A? No, C.", "C"),
    ("D can be ruled out. B", "B"),
    ("B. Ruling out option D", "B"),
    ("The answer is C. Not B or D.", "C"),
    # full width
    ("Ｂ", "B"),
    ("（ｂ）", "B"),
    ("The answer is Ｃ．", "C"),
    ("ｇｒｏｗｓ", "B"),
    # one turned down for the other
    ("I choose B over A", "B"),
    ("Choose A over B", "A"),
    ("I choose b over a", "B"),
    ("option B over option A.", "B"),
    ("I prefer B over A and C", "B"),
    ("B rather than A", "B"),
    ("Rather than A, B", "B"),
    ("A is better than B", "A"),
    ("a is better than b.", "A"),
    ("A fits better than B or C", "A"),
    ("B is more likely than A", "B"),
    ("B is likelier than A", "B"),
    ("A is worse than B", "B"),
    ("none other than B", "B"),
    ("It grows over there: B", "B"),
    # an aside
    ("Definitely B! (A would need a move)", "B"),
    ("B (although A is close)", "B"),
    ("It must be C. (Neither A nor B; D is less clear)", "C"),
    ("(D was tempting) A", "A"),
    ("It grows (so the answer is B)", "B"),
    ("It grows (option B)", "B"),
    ("I thought A, but it is (B)", "B"),
    # several without a choice
    ("A or B", None),
    ("a or b", None),
    ("A/B", None),
    ("A, B", None),
    ("A B", None),
    ("A B C D", None),
    ("A\nB\nC\nD", None),
    ("Both A and B", None),
    ("both a and b", None),
    ("Either (A) or (B)", None),
    ("option A or option B", None),
    ("The answer is A or B.", None),
    ("A. moves left B. grows C. spins D. turns red", None),
    ("A) moves left\nB) grows", None),
    ("A (moves left) or B (grows)", None),
    ("grows or spins", None),
    ("A or B? B.", "B"),
    ("Between A and B, I choose A", "A"),
    ("The options are A, B, C and D. I take C.", "C"),
    ("C, while A and B show something else", "C"),
    ("B. B", "B"),
    ("B, that is **B**", "B"),
    ("A, no wait, C", "C"),
    ("A 3 km walk", None),
    ("Not A", None),
    ("not (a)", None),
    ("A is incorrect", None),
    ("neither A nor B", None),
    ("Not A or B.", None),
    # words that are no letters
    ("A square appears", None),
    ("a square appears", None),
    ("I see a thing", None),
    ("I'd say B", "B"),
    ("B, I'd say", "B"),
    ("B, i.e. the second", "B"),
    ("Bad Cat", None),
    ("ABCD", None),
    ("B2", None),
    ("Vitamin-B", None),
    ("c'est bon", None),
    ("A-level", None),
    ("E", None),
    ("(e)", None),
    ("1", None),
    ("", None),
    ("?", None),
    # the option's text
    ("moves left", "A"),
    ("Moves  Left.", "A"),
    ("It moves left", "A"),
    ("A moves left", "A"),
    ("it moves\nleft", "A"),
    ("the square turns red", "D"),
    ("it turns redder", None),
    ("it grows, then it spins", "C"),
    ("not grows but spins", "C"),
    ("it never grows", None),
    ("B. moves left", "B"),  # a letter says more than a text
    ("Not A (moves left)", None),
    ("Not A, it grows", "B"),
    # by elimination
    ("By elimination: D", "D"),
    ("B, by elimination of A", "B"),
    ("I would go with b", "B"),
    # in Chinese
    ("选B", "B"),
    ("答案是B。", "B"),
    ("答案是b", "B"),
    ("答案是 B，不是 A", "B"),
    ("不是A，是B", "B"),
    ("A选项错误，B选项正确", "B"),
    ("B选项正确，A选项错误", "B"),
    ("B对，A、C错误", "B"),
    ("选D，A、B、C都不对", "D"),
    ("选B，A被排除", "B"),
    ("因此选C而非D", "C"),
    ("答案不是B", None),
    ("B不是答案", None),
    ("B或C", None),
    ("A还是B", None),
]


@pytest.mark.parametrize("answer, letter", CASES)
def test_table(answer, letter):
    assert read_option(answer, KINDS) == letter


@pytest.mark.parametrize(
    "answer, options, letter",
    [
        ("e", KINDS + ("hides",), "E"),
        ("E.", KINDS + ("hides",), "E"),
        ("B, e.g. here", KINDS + ("hides",), "B"),  # the e of e.g. is no option
        ("B, i.e. the second", tuple("klmnopqrs"), "B"),  # nor is the i or the e of i.e.
        ("I think so", tuple("klmnopqrs"), None),
        ("I", tuple("klmnopqrs"), "I"),
        ("vitamin B", ("vitamin C", "vitamin A", "vitamin B"), "C"),
        ("It is vitamin B.", ("vitamin C", "vitamin A", "vitamin B"), "C"),
        ("dark red", ("red", "dark red"), "B"),
        ("it is dark red", ("red", "dark red"), "B"),
        ("it is red", ("red", "dark red"), "A"),
        ("3", ("1", "2", "3"), "C"),
        ("13", ("1", "2", "3"), None),
        ("a", ("b", "a"), "A"),  # options that are letters themselves: the letter of the option counts
        ("a big dog", ("a cat", "a big dog"), "B"),
        ("C++ (a language)", ("Java", "C++"), "B"),
        ("D", ("yes", "no"), None),
        ("anything", (), None),
        ("straße", ("strasse", "straße"), "B"),
        ("不是红色", ("红色", "不是红色"), "B"),
        ("狗和猫", ("猫", "狗和猫"), "B"),
    ],
)
def test_other_options(answer, options, letter):
    assert read_option(answer, options) == letter


DRESSES = ("{}", "({})", "[{}]", "{}.", "**{}**", r"\boxed{{{}}}", "The answer is {}.", "answer: {}", "Option {}")
numbers = st.integers(1, len(KINDS))


@given(st.sampled_from("ABCD"), st.sampled_from(DRESSES), st.booleans())
def test_every_letter_in_every_dress(letter, dress, small):
    assert read_option(dress.format(letter.lower() if small else letter), KINDS) == letter


@given(st.text(), numbers)
def test_never_more_than_the_options_there_are(text, number):
    assert read_option(text, KINDS[:number]) in (None, *LETTERS[:number])


mentions = st.sampled_from(("not A", "B or", "(c)", "neither", "grows", "is wrong", "a", "isn't", ",", ".", "\n", "D"))


@given(st.one_of(st.text(), st.lists(mentions, max_size=8).map(" ".join)), st.sampled_from("ABCD"))
def test_a_clear_last_statement_decides(text, letter):
    assert read_option(f"{text}\n\nThe answer is {letter}.", KINDS) == letter


@given(st.text(alphabet=string.ascii_lowercase, min_size=2, max_size=8), st.sampled_from("ABCD"))
def test_a_letter_inside_a_word_is_no_option(word, letter):
    assert read_option(f"x{letter}{word} {word}{letter}", ("moves left", "grows big", "spins", "turns red")) is None


@given(st.permutations(KINDS))
def test_option_texts_follow_their_letters(options):
    for letter, text in zip("ABCD", options):
        assert read_option(f"The square {text}.", options) == letter


@pytest.mark.parametrize(
    "text",
    ["not " * 3000, "not" + " " * 9000, "(" * 9000, "A, " * 3000, "A or " * 3000, "b is " * 3000]
    + ["over " * 3000, "more " * 3000, "(option A " * 2000, "(A" + "." * 9000, "grows or " * 2000],
)
def test_long_answers_are_read_in_no_time(text):
    started_s = time.perf_counter()
    read_option(text, KINDS)
    assert time.perf_counter() - started_s < 1.0
