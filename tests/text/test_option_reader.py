"""Options in every form that files have them, and what must not be taken for a mark."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidbridge.text.option_reader import Options, question_and_options, read_options, split_options, written
from vidbridge.text.options import LETTERS

# how the place of an option (from 0) is written before it, and what closes behind it
MARKS = {
    "A. ": lambda n: f"{LETTERS[n]}. ",
    "A) ": lambda n: f"{LETTERS[n]}) ",
    "(A) ": lambda n: f"({LETTERS[n]}) ",
    "A: ": lambda n: f"{LETTERS[n]}: ",
    "[A] ": lambda n: f"[{LETTERS[n]}] ",
    "A - ": lambda n: f"{LETTERS[n]} - ",
    "**A.** ": lambda n: f"**{LETTERS[n]}.** ",
    "**A** ": lambda n: f"**{LETTERS[n]}** ",
    "A、": lambda n: f"{LETTERS[n]}、",
    "A．": lambda n: f"{LETTERS[n]}．",
    "（A）": lambda n: f"（{LETTERS[n]}）",
    "Ａ．": lambda n: f"{chr(ord('Ａ') + n)}．",
    "A\\. ": lambda n: f"{LETTERS[n]}\\. ",
    "a. ": lambda n: f"{LETTERS[n].lower()}. ",
    "(b) ": lambda n: f"({LETTERS[n].lower()}) ",
    "1. ": lambda n: f"{n + 1}. ",
    "(1) ": lambda n: f"({n + 1}) ",
    "Option A: ": lambda n: f"Option {LETTERS[n]}: ",
    "**Option A:** ": lambda n: f"**Option {LETTERS[n]}:** ",
    "选项A：": lambda n: f"选项{LETTERS[n]}：",
    "- A. ": lambda n: f"- {LETTERS[n]}. ",
    "* **A)** ": lambda n: f"* **{LETTERS[n]})** ",
    "• (A) ": lambda n: f"• ({LETTERS[n]}) ",
}
WORDS = st.lists(st.sampled_from("a the cup red I vitamin moves left 3 second, it's well-known".split()), min_size=1)
TEXTS = st.lists(WORDS.map(lambda words: f"x {' '.join(words)}"), min_size=2, max_size=26)


@pytest.mark.parametrize("name", MARKS)
@given(texts=TEXTS)
def test_a_mark_changes_nothing_in_a_list_in_lines_and_in_a_question(name, texts):
    marked = [MARKS[name](number) + text for number, text in enumerate(texts)]
    assert read_options(marked).texts == tuple(texts)
    assert read_options("\n".join(marked)).texts == tuple(texts)
    assert split_options("\n".join(["What is it?", *marked])) == (
        "What is it?", Options(tuple(texts), numbered=name in ("1. ", "(1) "))
    )


@given(texts=TEXTS)
def test_without_marks_a_list_and_an_object_are_the_same(texts):
    for found in (texts, dict(zip(LETTERS, texts)), dict(zip(LETTERS.lower(), texts)), "\n".join(texts)):
        assert read_options(found).texts == tuple(texts)
    assert read_options(dict(reversed(list(zip(LETTERS, texts))))).texts == tuple(texts)


@given(st.lists(st.text(), max_size=8))
def test_whatever_the_texts_none_is_lost_and_what_is_written_is_read_back(found):
    try:
        options = read_options(found)
    except ValueError:
        return
    assert len(options.texts) == len(found)
    assert read_options(written(options.texts)).texts == options.texts


@given(st.text(alphabet="AB1. )(\n-x?", max_size=40))
def test_a_question_is_split_or_left_as_it_is_or_refused(question):
    try:
        alone, options = split_options(question)
    except ValueError:
        return
    if options is None:
        assert alone == question
    else:
        assert len(options.texts) >= 2 and sum(map(len, options.texts)) + len(alone) < len(question)


@pytest.mark.parametrize(
    "options",
    [
        ["A. Lincoln", "Grant"],  # one alone is a name
        ["A man", "Bread", "C. elegans"],
        ["J. Smith", "A. Jones", "M. Brown"],
        ["A.D. 100", "B.C. 100"],
        ["A major", "B major"],
        ["1.5 m", "2.5 m"],
        ["1:30", "2:45"],
        ["1 - 2", "2 - 3"],
        ["1: 2", "2: 1"],
        ["e.g. this", "i.e. that"],
        ["A", "B"],
        ["T-shirt", "U-turn"],
        ["C: drive", "D: drive"],
    ],
)
def test_what_only_looks_like_marks_stays(options):
    assert read_options(options).texts == tuple(options)


@pytest.mark.parametrize(
    "options",
    [
        ["A. cup", "B. bowl", "jug"],  # all but one
        ["B. bowl", "A. cup"],  # whose letter counts?
        ["B. cup", "C. bowl", "D. jug"],
        ["A. cup", "B) bowl"],
        ["A. A. cup", "B. B. bowl"],
    ],
)
def test_letters_that_may_or_may_not_be_marks_are_refused(options):
    with pytest.raises(ValueError, match="the options carry letters"):
        read_options(options)


@pytest.mark.parametrize("found", [3, None, "cup", [None, "x"], [True, "x"], {"A": "x", "C": "y"}, {"colour": "red"}])
def test_what_is_no_options_is_refused(found):
    with pytest.raises(ValueError, match="expected"):
        read_options(found)


@pytest.mark.parametrize(
    ("problem", "question", "options"),
    [
        ("What?\nA. grows\nB. spins", "What?", ("grows", "spins")),
        ("What?\nOptions:\n(A) grows\n(B) spins\n(C) hides", "What?", ("grows", "spins", "hides")),
        ("What?\n\n**Options:**\n- A. grows\n\n- B. spins\n", "What?", ("grows", "spins")),
        ("What?\nA) grows\nB) spins\nAnswer with a letter.", "What?\nAnswer with a letter.", ("grows", "spins")),
        ("What? A. grows B. spins it C. hides", "What?", ("grows", "spins it", "hides")),
        ("What does Dr. A. do?\nA: sits\nB: eats vitamin B.", "What does Dr. A. do?", ("sits", "eats vitamin B.")),
        ("What next?\nA. grows\nand turns\nB. spins\nand hides", "What next?", ("grows and turns", "spins and hides")),
        ("What next?\nA.\ngrows\nB.\nspins", "What next?", ("grows", "spins")),
        ("What next?\r\nA. grows\r\nB. spins\r\n", "What next?", ("grows", "spins")),
        ("Which?\n1. he cuts\n2. he fries\nA. 1, 2\nB. 2, 1", "Which?\n1. he cuts\n2. he fries", ("1, 2", "2, 1")),
        ("Tom:\nA: Hello\nB: Hi\nWho?\nA: Tom\nB: Ann", "Tom:\nA: Hello\nB: Hi\nWho?", ("Tom", "Ann")),
        ("Which?\nA. first:\n1) x\n2) y\nB. none", "Which?", ("first: 1) x 2) y", "none")),
        ("下一步？\nA、转\nB、停\n请回答", "下一步？\n请回答", ("转", "停")),
        ("Say it. A. yes B. no", "Say it. A. yes B. no", None),  # too short to tell from "Dr. A. Smith"
        ("Did Dr. A. Smith and B. Jones meet?", "Did Dr. A. Smith and B. Jones meet?", None),
        ("A. Who is B?", "A. Who is B?", None),
        ("What grows?", "What grows?", None),
        ("What?\nA grows\nB spins", "What?\nA grows\nB spins", None),
        ("What?\nA. man\nB. boy  E. of his", "What?", ("man", "boy E. of his")),
    ],
)
def test_options_in_a_question(problem, question, options):
    assert split_options(problem) == (question, None if options is None else Options(options))


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("What?\nA. x\nB. y\nC) z", "mixed or not in order"),
        ("What?\nA. x\nB. y\nB. z", "mixed or not in order"),
        ("What?\nA. x    C. z\nB. y    D. w", "mixed or not in order"),  # two columns
        ("What?\nA. x\nB. y\nThe end is near", "belongs to the last option"),
        ("What?\nA. x\nB. he picks\nup the letter", "belongs to the last option"),
    ],
)
def test_a_question_that_could_be_split_in_two_ways_is_refused(problem, message):
    with pytest.raises(ValueError, match=message):
        split_options(problem)


def test_a_field_of_options_comes_before_those_that_the_question_repeats():
    asked = "What?\nA. cup\nB. bowl"
    assert question_and_options(asked, ["A. cup", "B. bowl"], "q", "o") == ("What?", Options(("cup", "bowl")))
    assert question_and_options(asked, ["jug", "pot"], "q", "o") == (asked, Options(("jug", "pot")))
    assert question_and_options("What?", None, "q", "o") == ("What?", None)
    with pytest.raises(ValueError, match="field 'q' holds options and no question"):
        question_and_options("A. cup\nB. bowl", None, "q", "o")
    with pytest.raises(ValueError, match="field 'o': the options carry letters"):
        question_and_options("What?", ["B. cup", "A. bowl"], "q", "o")


@pytest.mark.parametrize(
    "answer",
    ["B", "b", "B.", "(B)", "[B]", "**B**", "B、", "Ｂ", "Option B", "B. bowl", "(b) bowl", "bowl", "Bowl.", "B. a bowl"],
)
def test_an_answer_is_a_letter_a_text_or_both(answer):
    for first in (None, "letter", "text"):
        assert Options(("cup", "bowl")).letter_of(answer, first) == "B"


@pytest.mark.parametrize("answer", ["C", "2", "", "A. bowl", "jug", "AB", "A, B"])
def test_an_answer_that_states_no_option_or_two_is_refused(answer):
    for first in (None, "letter", "text"):
        with pytest.raises(ValueError, match="the answer"):
            Options(("cup", "bowl")).letter_of(answer, first)


def test_an_answer_is_a_number_where_the_options_have_numbers():
    numbered = read_options(["1. cup", "2. bowl"])
    assert [numbered.letter_of(answer) for answer in ("1", "2.", "2. bowl", "B")] == ["A", "B", "B", "B"]
    with pytest.raises(ValueError, match="the letter of one option and the text of another"):
        read_options(["1. two", "2. 1"]).letter_of("1")


def test_where_a_letter_is_the_text_of_another_option_the_format_decides():
    options = Options(("B", "A", "C"))
    assert (options.letter_of("A", "letter"), options.letter_of("A", "text"), options.letter_of("C")) == ("A", "B", "C")
    with pytest.raises(ValueError, match="the letter of one option and the text of another"):
        options.letter_of("A")
    assert Options(("Grant", "A. Lincoln")).letter_of("A. Lincoln", "letter") == "B"


def test_a_doubled_option_is_stated_by_its_letter_alone():
    doubled = Options(("hall", "pool", "hall"))
    assert [doubled.letter_of(answer) for answer in ("A", "C. hall", "pool")] == ["A", "C", "B"]
    with pytest.raises(ValueError, match="the text of 2 options; give its letter"):
        doubled.letter_of("hall")
