"""Word errors on examples counted by hand."""

import pytest

from latentlm.evaluation.speech.word_errors import normalize_text, word_errors

pytest.importorskip("jiwer")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It’s  HERE, now!", "it's here now"),
        ("twenty-one_two", "twenty one two"),
        ("", ""),
        ("Crème — brûlée.", "crème brûlée"),
    ],
)
def test_texts_are_compared_as_lower_case_words(text, expected):
    assert normalize_text(text) == expected


def test_digits_become_words_only_where_texts_are_digit_strings():
    assert normalize_text("31, 4", spell_digits=True) == "three one four"
    assert normalize_text("31, 4") == "31 4"


def test_errors_are_counted_as_by_hand():
    errors = word_errors(
        ["three one four", "one five nine two", "six", "five three"],
        ["three nine four", "one five two", "six six", ""],
    )
    assert errors.words == (3, 4, 1, 2)
    assert errors.errors == (1, 1, 1, 2)  # substituted; "nine" deleted; inserted; both deleted
    assert errors.deletions == (0, 1, 0, 2)
    assert errors.insertions == (0, 0, 1, 0)
    assert errors.rate == pytest.approx(5 / 10)
    assert errors.accuracy == pytest.approx(0.5)
    assert errors.exact_share == 0


def test_a_last_word_is_lost_when_it_is_missing_and_not_when_it_is_misread():
    references = ["one two three"] * 5
    said = ["one two", "one two nine", "one two three", "", "three"]
    assert word_errors(references, said).last_word_lost == (True, False, False, True, False)


def test_more_errors_than_words_are_an_accuracy_of_zero():
    errors = word_errors(["one"], ["two two two"])
    assert errors.rate == 3
    assert errors.accuracy == 0


def test_references_without_words_and_unequal_numbers_are_refused():
    with pytest.raises(ValueError, match="no word"):
        word_errors(["..."], ["one"])
    for references, said in ((["one"], []), ([], [])):
        with pytest.raises(ValueError, match="one by one"):
            word_errors(references, said)


def test_json_holds_sums_and_an_interval():
    content = word_errors(["one two", "three four"], ["one two", "three"]).as_json()
    assert (content["num_words"], content["substitutions"], content["deletions"]) == (4, 0, 1)
    assert content["interval"]["low"] <= content["word_error_rate"] == 0.25 <= content["interval"]["high"]
