"""Accuracy of short answers to questions about pictures, by the rules of VQA (Antol et al. 2015; VQA v2).

An answer is right as far as people gave it: min(matches / 3, 1), averaged over the ten ways to leave one of the ten
annotators out. Both sides are normalised first, exactly as the official script does it (GT-Vision-Lab/VQA, vqaEval.py;
slips included, for scores compare only under the same ones). With a single reference, which the script never has, the
measure is exact match after that normalisation.

A table of accuracies shows two baselines beside the model (`majority_baseline`, and the model without the picture):
much of VQA can be guessed from the question.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from latentlm.evaluation.scores_table import Columns

_FULL_AGREEMENT = 3
"""Matches among the other annotators that make an answer fully right."""

_NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_ARTICLES = ("a", "an", "the")

# Apostrophe and colon stay: "girl's" is not "girls", and "2:50" is a time.
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD_NOT_DECIMAL = re.compile(r"\.(?!\d)")
_NUM_PERIODS = 32
"""As many are removed at most: the script passes re.UNICODE (32) where `sub` takes a count."""

# Contractions of the script. Those whose bare letters are another word ("we're", "it's", "I'll") are left out there;
# "I'm", "I've" and "I'd've" are in upper case there, so that lower-cased text never meets them.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's
    there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't
    what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_APOSTROPHE_MISSING = {
    full[:place] + full[place + 1 :]: full
    for full in _CONTRACTIONS.split()
    for place, sign in enumerate(full)
    if sign == "'"
} | {"somebody'd": "somebodyd"}  # the wrong way round, as in the script
"""A contraction with any one of its apostrophes missing, to the contraction."""


def normalize_answer(answer: str) -> str:
    """An answer as VQA compares it.

    Punctuation except apostrophe and colon becomes a space, or nothing if the sign touches a space anywhere in the
    answer or the answer has a comma between digits; periods that are not before a digit are removed. Then lower case;
    number words up to ten become digits; articles go; contractions get a missing apostrophe back.

    >>> normalize_answer("The 100,978 dogs... dont bark!")
    "100978 dogs don't bark"
    """
    return _with_digits_and_without_articles(_without_punctuation(_in_one_line(answer)))


def _in_one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(answer: str) -> str:
    """The script's processPunctuation."""
    has_long_number = _COMMA_IN_NUMBER.search(answer) is not None
    text = answer
    for sign in _PUNCTUATION:
        touches_space = f"{sign} " in answer or f" {sign}" in answer
        text = text.replace(sign, "" if touches_space or has_long_number else " ")
    return _PERIOD_NOT_DECIMAL.sub("", text, count=_NUM_PERIODS)


def _with_digits_and_without_articles(answer: str) -> str:
    """The script's processDigitArticle."""
    words = [_NUMBERS.get(word, word) for word in answer.lower().split()]
    return " ".join(_APOSTROPHE_MISSING.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """How far people agree with an answer: mean over the left-out annotator of min(matches among the others / 3, 1).

    With ten references: 0, 0.3, 0.6 or 0.9 for up to three matches and 1 from four on. As in the script nothing is
    normalised, the answer neither, where all annotators wrote the very same.

    Args:
        answer: The model's.
        references: One per annotator (VQA has ten), or a single one, which is then matched exactly.

    Returns:
        In [0, 1].

    Raises:
        ValueError: If there is no reference, or there are two or three, among which nothing can be fully right.
    """
    if isinstance(references, str) or len(references) in (0, 2, 3):
        raise ValueError(
            "VQA accuracy needs the answers of at least four annotators, one of whom is left out and three of whom "
            f"make an answer right, or a single answer to match; but got {references!r}"
        )
    count = len(references)
    is_unanimous = count > 1 and len(set(map(_in_one_line, references))) == 1
    normalize = _in_one_line if is_unanimous else normalize_answer
    given = normalize(answer)
    matches = sum(normalize(reference) == given for reference in references)
    if count == 1:
        return float(matches)
    # Leaving out one of those who agree leaves one match less; leaving out one of the others leaves all.
    agreeing_left_out = matches * min((matches - 1) / _FULL_AGREEMENT, 1)
    other_left_out = (count - matches) * min(matches / _FULL_AGREEMENT, 1)
    return (agreeing_left_out + other_left_out) / count


@dataclass(frozen=True, kw_only=True)
class VqaScores:
    """Answers to a set of questions."""

    num_questions: int
    accuracy: float
    """Mean of `vqa_accuracy`."""

    columns: ClassVar[Columns] = {
        "num_questions": ("questions", "d"),
        "accuracy": ("VQA accuracy ↑", ".1%"),
    }

    def as_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)


def score_answers(answers: Sequence[str], references: Sequence[Sequence[str]]) -> VqaScores:
    """Mean accuracy of answers, also of the blind baseline's: the same model asked without the picture.

    Args:
        answers: One per question.
        references: The annotators' answers to each.

    Raises:
        ValueError: If there are no questions, the lengths differ, or a question has 0, 2 or 3 references.
    """
    if len(answers) != len(references) or not answers:
        raise ValueError(
            f"answers are scored question by question, but there are {len(answers)} answers and references of "
            f"{len(references)} questions"
        )
    values = [vqa_accuracy(answer, texts) for answer, texts in zip(answers, references, strict=True)]
    return VqaScores(num_questions=len(values), accuracy=sum(values) / len(values))


def majority_baseline(
    train_answers: Sequence[str],
    test_answers: Sequence[Sequence[str]],
    by_question: tuple[Sequence[str], Sequence[str]] | None = None,
) -> VqaScores:
    """Accuracy of always giving the most frequent training answer: what a model without eyes gets for nothing.

    Args:
        train_answers: One per training question.
        test_answers: The annotators' answers to each test question.
        by_question: The training and the test questions (or their types): the answer is then the most frequent one to
            that very question, upper and lower case alike, and the overall one to questions that training never asked.

    Raises:
        ValueError: If there are no answers, or their numbers do not fit those of the questions.
    """
    if not train_answers:
        raise ValueError("a majority needs at least one training answer")
    majority = _most_frequent(train_answers)
    if by_question is None:
        return score_answers([majority] * len(test_answers), test_answers)
    train_questions, test_questions = by_question
    if len(train_questions) != len(train_answers) or len(test_questions) != len(test_answers):
        raise ValueError(
            f"{len(train_questions)} training and {len(test_questions)} test questions do not fit "
            f"{len(train_answers)} training and {len(test_answers)} test answers"
        )
    answers_to: defaultdict[str, list[str]] = defaultdict(list)
    for question, answer in zip(train_questions, train_answers, strict=True):
        answers_to[question.lower()].append(answer)
    majority_of = {question: _most_frequent(answers) for question, answers in answers_to.items()}
    given = [majority_of.get(question.lower(), majority) for question in test_questions]
    return score_answers(given, test_answers)


def _most_frequent(answers: Sequence[str]) -> str:
    """The most frequent after normalisation; among equals the first in the alphabet, so that order plays no part."""
    counts = Counter(normalize_answer(answer) for answer in answers)
    return min(counts, key=lambda answer: (-counts[answer], answer))
