"""What models of documents are asked: one that sees gets everything right, one that does not gets the blind score."""

import pytest
import torch
from document_pipelines import DIGITS, NAMES, Scripted, digit_reader, digits_asked
from PIL import Image
from torch import Tensor

from latentlm.data.documents.composed.pools import plural_of, with_article
from latentlm.evaluation.document_answers import AskOptions, ask
from latentlm.evaluation.document_protocol import (
    blind_captions,
    blind_documents,
    blinded,
    caption_choices,
    captioning_scores,
    classes_named,
    few_shot_documents,
    name_choices,
    others_of_kind,
    picture_documents,
    plain_caption,
    score_captions,
    score_questions,
    score_switching,
    task_documents,
)
from latentlm.generation.prompts import BrokenPicture

OPTIONS = AskOptions(batch_size=16)
COUNT = 120


def seeing(task: str) -> Scripted:
    """Answers every question by the pictures that it is shown."""
    read = digit_reader(task)

    def reply(prompt, options):
        assert options["do_sample"] is False, "answers are greedy"
        assert options["max_images"] == 0, "answers are text"
        names = [read(part) for part in prompt if isinstance(part, Tensor)]
        question = prompt[-1]
        if task == "which":
            answer = names[0]
        elif task == "how_many":
            (asked,) = [
                n
                for n in NAMES
                if f"{plural_of(n)}?" in question
                or f"{plural_of(n)} " in question + " "
                or f"{plural_of(n)}." in question
            ]
            answer = ("zero", "one", "two", "three", "four")[names.count(asked)]
        else:
            (asked,) = [n for n in NAMES if f"{with_article(n)}?" in question or f"{with_article(n)} " in question]
            answer = "yes" if asked in names else "no"
        return (f" {answer}",), "eos"

    return Scripted(reply)


@pytest.mark.parametrize("task", ["which", "how_many", "is_there"])
def test_a_model_that_sees_answers_every_question(task):
    asked = digits_asked(task, COUNT)
    train = [one.fields for one in task_documents(DIGITS, task, part="train", count=400)]
    scores = score_questions(seeing(task), asked, OPTIONS, max_new_tokens=9, train_fields=train)
    assert (scores.model.num, scores.model.share) == (COUNT, 1.0)
    # With strange pictures it is right by luck: below 1/10, 1/3 and 1/2 + four standard errors of COUNT answers.
    luck = {"which": 0.1, "how_many": 1 / 3, "is_there": 1 / 2}[task]
    assert scores.blind.share < luck + 4 * (luck * (1 - luck) / COUNT) ** 0.5
    assert scores.majority is not None
    assert scores.majority.share < luck + 4 * (luck * (1 - luck) / COUNT) ** 0.5


@pytest.mark.parametrize("task", ["which", "how_many", "is_there"])
def test_a_model_that_ignores_pictures_gets_exactly_its_blind_score(task):
    asked = digits_asked(task, COUNT)
    by_question = {"which": "three", "how_many": "one", "is_there": "no"}
    ignorant = Scripted(lambda prompt, options: ((f" {by_question[task]}.",), "eos"))
    scores = score_questions(ignorant, asked, OPTIONS, max_new_tokens=9)
    assert scores.model == scores.blind
    assert 0 < scores.model.share < 1
    assert scores.majority is None


def test_a_blind_reader_sees_as_many_pictures_of_the_same_pools_but_those_of_another_document():
    asked = digits_asked("how_many", 40)
    pairs = blinded(asked)
    for one, shown in pairs:
        assert [part for part in shown.prompt if isinstance(part, str)] == [p for p in one.prompt if isinstance(p, str)]
        assert len(shown.pictures) == len(one.pictures)
        assert not all(torch.equal(a, b) for a, b in zip(shown.pictures, one.pictures, strict=True))
    # Every document's pictures are shown once: the blind see the same pictures as the seeing.
    seen = sorted(tuple(p.numpy().tobytes() for p in one.pictures) for one, _ in pairs)
    assert seen == sorted(tuple(p.numpy().tobytes() for p in shown.pictures) for _, shown in pairs)


def test_what_is_alone_of_its_kind_has_no_other():
    assert others_of_kind(["a", "b", "a", "c", "a", "b"]) == [2, 5, 4, None, 0, 1]


def test_blind_captions_keep_their_text_behind_a_strange_picture():
    documents = task_documents(DIGITS, "image_to_caption", part="test", count=20)
    for document, blind in zip(documents, blind_captions(documents), strict=True):
        assert (blind.parts[1], blind.key) == (document.parts[1], document.key)
        assert blind.parts[0] is not document.parts[0]


def test_blind_documents_keep_their_texts_around_the_pictures_of_one_other_of_their_kind():
    documents = task_documents(DIGITS, "how_many", part="test", count=30)
    blind = blind_documents(documents)
    assert [one.key for one in blind] == [one.key for one in documents]
    for document, other in zip(documents, blind, strict=True):
        assert [type(part) for part in other.parts] == [type(part) for part in document.parts]
        assert other.parts[-1] == document.parts[-1]
        assert not any(a is b for a, b in zip(document.parts[:-1], other.parts[:-1], strict=True))
    assert blind_documents(documents[:1]) == []


def test_a_document_of_two_names_is_given_each_of_them_as_its_answer_and_nothing_else():
    for document in few_shot_documents(DIGITS, part="test", count=5)[4]:
        first, second = name_choices(document)
        right = document.fields["choices"].index(document.fields["answer"])
        assert (first, second)[right].parts == document.parts
        assert first.parts[:-1] == second.parts[:-1]
        assert [one.parts[-1] for one in (first, second)] == [f"{name}." for name in document.fields["choices"]]


def test_every_number_of_examples_has_its_documents():
    by_shots = few_shot_documents(DIGITS, part="test", count=15)
    assert {shots: {d.fields["num_shots"] for d in documents} for shots, documents in by_shots.items()} == {
        shots: {shots} for shots in (0, 1, 2, 4)
    }
    assert all(len(documents) == 15 for documents in by_shots.values())


def test_documents_of_one_task_are_the_same_every_time_and_others_under_another_seed():
    first, again = (task_documents(DIGITS, "which", part="test", count=9) for _ in range(2))
    other = task_documents(DIGITS, "which", part="test", count=9, seed=1)
    assert [one.key for one in first] == [one.key for one in again] != [one.key for one in other]
    assert {one.fields["task"] for one in first} == {"which"}


def test_documents_of_different_pictures_are_those_of_the_task_without_repetitions():
    drawn = task_documents(DIGITS, "caption_to_image", part="test", count=200)
    keys = [one.fields["picture_keys"][0] for one in drawn]
    firsts = [one.key for place, one in enumerate(drawn) if keys[place] not in keys[:place]]
    assert len(firsts) < len(drawn), "or nothing was repeated"
    different = picture_documents(DIGITS, part="test", count=len(firsts))
    assert [one.key for one in different] == firsts
    assert [one.key for one in picture_documents(DIGITS, part="test", count=9)] == firsts[:9]


def test_all_pictures_of_the_pools_can_be_asked_for_and_no_more():
    everything = picture_documents(DIGITS, part="test", count=539)
    assert len({one.fields["picture_keys"][0] for one in everything}) == 539
    with pytest.raises(ValueError, match="540 different pictures were asked for, but the pools digit have 539"):
        picture_documents(DIGITS, part="test", count=540)


# -- captions ----------------------------------------------------------------------------------------------------------


def test_of_names_inside_each_other_the_longer_one_is_named():
    names = ["ankle boot", "boot", "T-shirt", "shirt"]
    assert classes_named("This is an Ankle Boot.", names) == {"ankle boot"}
    assert classes_named("a boot beside a t-shirt", names) == {"boot", "T-shirt"}
    assert classes_named("an ankle", names) == set()


def test_true_captions_in_other_words_are_exact_matches_and_name_the_class():
    asked = digits_asked("image_to_caption", COUNT)
    read = digit_reader("image_to_caption")
    captions = {name: f"This is {with_article(name)}" for name in NAMES}
    pipeline = Scripted(lambda prompt, options: ((captions[read(prompt[0])],), "eos"))
    scores = score_captions(pipeline, asked, NAMES, OPTIONS, max_new_tokens=30)
    assert (scores["model"].exact_match.share, scores["model"].class_named.share) == (1.0, 1.0)
    assert scores["model"].references_per_caption == 5.0
    # The caption of the next picture names its class one time in ten: four standard errors of COUNT above that.
    assert scores["blind"].class_named.share < 0.1 + 4 * (0.09 / COUNT) ** 0.5
    assert scores["blind"].cider < scores["model"].cider


def test_a_prefix_asks_for_a_caption_and_is_part_of_it():
    asked = digits_asked("image_to_caption", 20)
    read = digit_reader("image_to_caption")

    def reply(prompt, options):
        assert prompt[1] == "This is"
        return (f" {with_article(read(prompt[0]))}.",), "eos"

    scores = score_captions(Scripted(reply), asked, NAMES, OPTIONS, max_new_tokens=30, prefix="This is")
    assert scores["model"].exact_match.share == 1.0


def test_choices_of_captions_are_one_per_class_in_the_documents_own_words():
    for document in task_documents(DIGITS, "image_to_caption", part="test", count=10):
        choices = caption_choices(document, NAMES)
        label = document.fields["labels"][0]
        assert choices[label].parts == document.parts
        assert len({choice.parts[1] for choice in choices}) == len(NAMES)
        assert {(choice.key, id(choice.parts[0])) for choice in choices} == {(document.key, id(document.parts[0]))}


def test_a_caption_that_names_two_classes_names_none():
    asked = digits_asked("image_to_caption", 10)
    scores = captioning_scores(["one two three four five six seven eight nine zero"] * 10, asked, NAMES)
    assert scores.class_named.share == 0.0


def test_captions_that_say_the_same_in_other_words_have_one_plain_form():
    asked = digits_asked("caption_to_image", 60)
    assert {plain_caption(one.fields) for one in asked} == {f"A photo of {with_article(name)}." for name in NAMES}


# -- switching ---------------------------------------------------------------------------------------------------------

PICTURE = Image.new("L", (8, 8))


def switches(reply):
    """Scores of a pipeline that answers four documents of each sort."""
    tasks = ("caption_to_image", "interleaved", "image_to_caption")
    asked = [digits_asked(task, 4) for task in tasks]
    return score_switching(Scripted(reply), *asked, OPTIONS, picture_length=4, max_text_tokens=9)


def is_story(prompt):
    return isinstance(prompt[0], str) and prompt[0].startswith(("First", "Look", "Page"))


@pytest.mark.parametrize(
    ("after_text", "of_caption", "of_story"),
    [
        (((PICTURE,), "eos"), (1, 1, 1), (1, 1, 0)),  # a caption's document ends with its picture, a story does not
        (((PICTURE, " and more"), "length"), (1, 1, 1), (1, 1, 1)),
        (((PICTURE,), "length"), (1, 1, 0), (1, 1, 0)),
        (((PICTURE, PICTURE), "eos"), (1, 1, 0), (1, 1, 0)),
        (((BrokenPicture(3),), "eos"), (1, 0, 1), (1, 0, 0)),
        (((BrokenPicture(3), " and more"), "eos"), (1, 0, 1), (1, 0, 1)),
        ((("words first", PICTURE), "eos"), (0, 0, 0), (0, 0, 0)),
        (((), "eos"), (0, 0, 0), (0, 0, 0)),
    ],
)
def test_a_text_is_followed_by_one_whole_picture_and_a_story_by_text_again(after_text, of_caption, of_story):
    def reply(prompt, options):
        assert options["whole_pictures"] is False, "the model closes its pictures itself"
        return after_text if isinstance(prompt[0], str) else (("A seven.",), "eos")

    scores = switches(reply)
    for row, truths in (("captions", of_caption), ("stories", of_story)):
        found = scores[row]
        assert (found.opens.share, found.closes.share, found.returns.share) == truths
        assert found.everything.share == all(truths)
    assert scores["to_picture"].num == 8
    assert scores["to_picture"].returns.share == (of_caption[2] + of_story[2]) / 2
    assert scores["to_text"].everything.share == 1.0


def test_captions_and_stories_are_counted_apart():
    scores = switches(lambda prompt, options: ((), "eos") if is_story(prompt) else ((PICTURE,), "eos"))
    assert [scores[row].opens.share for row in ("captions", "stories", "to_picture", "to_text")] == [1, 0, 0.5, 0]


@pytest.mark.parametrize(
    ("after_picture", "truths"),
    [
        ((("A seven.",), "eos"), (1, 1, 1)),
        ((("on and on and on",), "length"), (1, 0, 0)),
        ((("A seven.", PICTURE), "eos"), (1, 1, 0)),
        (((PICTURE,), "eos"), (0, 0, 0)),
        (((), "eos"), (0, 0, 0)),
    ],
)
def test_a_picture_is_followed_by_text_that_ends(after_picture, truths):
    scores = switches(lambda prompt, options: ((PICTURE,), "eos") if isinstance(prompt[0], str) else after_picture)
    found = scores["to_text"]
    assert (found.opens.share, found.closes.share, found.returns.share) == truths
    assert scores["captions"].everything.share == 1.0, "the pictures' answers count for themselves"


def test_a_picture_that_is_never_closed_cannot_have_the_right_length_by_the_bound():
    bounds = []

    def reply(prompt, options):
        bounds.append(options["max_new_tokens"])
        return (), "eos"

    switches(reply)
    assert min(bounds) > 2 + 4 + 2  # begin, end, and room for one latent too many


# -- asking ------------------------------------------------------------------------------------------------------------


def test_answers_stand_in_the_order_of_their_prompts_and_seeds_follow_each_other_through_batches():
    pipeline = Scripted(lambda prompt, options: ((f"{prompt[0]} {options['seed']}",), "eos"))
    answers = ask(pipeline, [(f"p{i}",) for i in range(5)], AskOptions(batch_size=2, first_seed=70))
    assert [answer.parts[0] for answer in answers] == [f"p{i} {70 + i}" for i in range(5)]
