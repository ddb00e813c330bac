"""VQA accuracy: the examples of the published rules, agreement worked out, and the baselines."""

import pytest

from latentlm.evaluation.scores_table import scores_table
from latentlm.evaluation.vqa import majority_baseline, normalize_answer, score_answers, vqa_accuracy


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        # The examples of the evaluation page of VQA.
        ("dont", "don't"),
        ("girl's", "girl's"),
        ("2:50 pm", "2:50 pm"),
        ("100,978", "100978"),
        # Its rules.
        ("YES", "yes"),
        ("two", "2"),
        ("none", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("a dog and the cat", "dog and cat"),
        ("the", ""),
        ("yes.", "yes"),
        ("3.5", "3.5"),
        (".5 miles", ".5 miles"),
        ("u.s.a.", "usa"),
        ("red/blue", "red blue"),
        ("yes, it is", "yes it is"),
        ("black-and-white", "black and white"),
        ('"stop"?', "stop"),
        ("  to\tthe\nleft ", "to left"),
        ("theyre", "they're"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("twas", "'twas"),
        ("oclock", "o'clock"),
        ("$5 & 50%", "$5 & 50%"),
        # What the official script (vqaEval.py of GT-Vision-Lab/VQA, 2021) makes of its own corners.
        ("t-shirt", "t shirt"),
        ("t -shirt x-ray", "t shirt xray"),  # a sign that touches a space anywhere leaves none behind
        ("black - white - grey-ish", "black white greyish"),
        ("stop!now ?", "stop now"),  # and another sign does not care
        ("cat,dog", "cat dog"),
        ("1,000 red/blue", "1000 redblue"),  # nor does any sign beside a long number
        ("10,000-20,000", "1000020000"),
        ("what's up?ok", "what's up ok"),
        ("Two\tDogs\n", "2 dogs"),
        ("a/the", ""),
        ("somebody'd", "somebodyd"),  # the wrong way round there
        ("Im", "im"),
        ("." * 40 + "x", "." * 8 + "x"),  # 32 periods at most
    ],
)
def test_answers_are_normalised_by_the_published_rules(answer, expected):
    assert normalize_answer(answer) == expected


@pytest.mark.parametrize("word", ["its", "were", "well", "ill", "shell", "id", "wed", "lets"])
def test_words_that_are_no_contraction_stay(word):
    assert normalize_answer(word) == word


def by_the_definition(answer: str, references: list[str]) -> float:
    """Leave each annotator out in turn."""
    subsets = [references[:left_out] + references[left_out + 1 :] for left_out in range(len(references))]
    return sum(min(subset.count(answer) / 3, 1) for subset in subsets) / len(subsets)


@pytest.mark.parametrize("matches", range(11))
def test_accuracy_is_the_mean_over_the_left_out_annotators(matches):
    references = ["red"] * matches + ["blue"] * (10 - matches)
    value = vqa_accuracy("red", references)
    assert value == pytest.approx(by_the_definition("red", references))
    # The values that papers quote for ten annotators.
    assert value == pytest.approx([0, 0.3, 0.6, 0.9, 1][min(matches, 4)])


def test_nothing_is_normalised_where_all_annotators_wrote_the_same():
    assert vqa_accuracy("Red.", ["red"] * 10) == 0
    assert vqa_accuracy(" red\n", ["red"] * 9 + ["red "]) == 1
    assert vqa_accuracy("two", ["2"] * 10) == 0
    assert vqa_accuracy("Red.", ["red"] * 9 + ["blue"]) == 1
    assert vqa_accuracy("red", ["Red"] * 9 + ["red"]) == 1


def test_one_reference_is_matched_exactly_after_normalisation():
    assert vqa_accuracy("Two dogs!", ["2 dogs"]) == 1
    assert vqa_accuracy("two", ["2 dogs"]) == 0


@pytest.mark.parametrize("references", [[], ["red"] * 2, ["red"] * 3, "red"])
def test_numbers_of_annotators_among_whom_nothing_is_fully_right_are_refused(references):
    with pytest.raises(ValueError, match="at least four annotators"):
        vqa_accuracy("red", references)


def test_scores_are_means_with_a_table_row():
    scores = score_answers(["red", "two"], [["red"] * 3 + ["blue"] * 7, ["3"]])
    assert scores.as_json() == {"num_questions": 2, "accuracy": pytest.approx(0.45)}
    assert "| model | 2 | 45.0% |" in scores_table({"model": scores})
    for answers in ([], ["red"]):
        with pytest.raises(ValueError, match="question by question"):
            score_answers(answers, [["red"], ["blue"]])


def test_the_majority_answer_is_counted_after_normalisation():
    scores = majority_baseline(["Yes.", "yes", "no", "no", "the yes"], [["yes"], ["no"], ["yes"], ["2"]])
    assert scores.accuracy == 0.5
    assert majority_baseline(["no", "yes"], [["no"]]) == majority_baseline(["yes", "no"], [["no"]]), "a tie"


def test_the_majority_by_question_answers_unknown_questions_with_the_overall_one():
    train = ["yes", "yes", "yes", "2", "2", "3"]
    train_questions = ["Is it?"] * 3 + ["How many?"] * 3
    scores = majority_baseline(train, [["2"], ["yes"], ["no"]], (train_questions, ["how many?", "What?", "Is it?"]))
    assert scores.accuracy == pytest.approx(2 / 3)


def test_baselines_refuse_numbers_that_do_not_fit():
    with pytest.raises(ValueError, match="at least one training answer"):
        majority_baseline([], [["yes"]])
    with pytest.raises(ValueError, match="do not fit"):
        majority_baseline(["yes"], [["yes"]], (["Is it?"], []))
