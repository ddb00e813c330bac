"""What composed documents say is true of their pictures, balanced, and not to be guessed from the text."""

import re
from collections import Counter

import numpy as np
import pytest

from latentlm.data.documents import RawDocument, RawImage
from latentlm.data.documents.composed import TASKS, ComposedDataConfig, ComposedDocuments, PoolConfig, open_composed
from latentlm.data.documents.composed import tasks as phrasings
from latentlm.data.documents.composed.pools import Dealer, plural_of, with_article
from latentlm.data.documents.composed.tasks import CAPTIONS, INVENTED, NUM_SHOTS, NUMBER_WORDS

NAMES = {"digit": ["one", "eight", "six"], "garment": ["ankle boot", "trouser", "dress", "T-shirt"]}
NUM = 1000
PER_CLASS = 12


def write_pool(path, noun: str) -> PoolConfig:
    """Pictures that show what they are: every pixel is ten times the number of their pool plus their label."""
    labels = np.arange(len(NAMES[noun])).repeat(PER_CLASS)
    shades = (10 * list(NAMES).index(noun) + labels).astype(np.uint8)
    np.savez(path, images=shades[:, None, None] * np.ones((1, 2, 2), np.uint8), labels=labels)
    return PoolConfig(path=str(path), names=NAMES[noun], validation_ratio=0.0)


def seen(picture: RawImage) -> tuple[str, str]:
    """Noun and name, told from the pixels alone."""
    assert isinstance(picture.data, np.ndarray)
    pool, label = divmod(int(picture.data[0, 0]), 10)
    noun = list(NAMES)[pool]
    return noun, NAMES[noun][label]


def all_seen(document: RawDocument) -> list[tuple[str, str]]:
    return [seen(part) for part in document.parts if isinstance(part, RawImage)]


def text_of(document: RawDocument) -> str:
    return "".join(part if isinstance(part, str) else "<>" for part in document.parts)


@pytest.fixture(scope="module")
def by_task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pools")
    pools = {noun: write_pool(folder / f"{noun}.npz", noun) for noun in NAMES}
    opened = open_composed(ComposedDataConfig(pools=pools), part="train").pools
    made = {}
    for task in TASKS:
        config = ComposedDataConfig(pools=pools, tasks={task: 1.0}, num_documents=NUM)
        documents = ComposedDocuments(opened, config, "train")
        made[task] = [documents[index] for index in range(NUM)]
    return made


def assert_even(counts: Counter, options: int, total: int) -> None:
    """All options occur alike, up to five standard deviations of a binomial count."""
    expected = total / options
    deviation = (expected * (1 - 1 / options)) ** 0.5
    assert len(counts) == options
    assert all(abs(count - expected) < 5 * deviation for count in counts.values()), counts


def test_fields_say_what_the_pictures_show(by_task):
    for documents in by_task.values():
        for document in documents:
            fields = document.fields
            assert list(zip(fields["pools"], fields["label_names"], strict=True)) == all_seen(document)
            assert [NAMES[noun][label] for noun, label in zip(fields["pools"], fields["labels"], strict=True)] == [
                name for _, name in all_seen(document)
            ]


@pytest.mark.parametrize("task", ["caption_to_image", "image_to_caption"])
def test_captions_name_the_picture_in_several_ways(by_task, task):
    for document in by_task[task]:
        ((_, name),) = all_seen(document)
        caption = document.fields["caption"]
        assert [part for part in document.parts if isinstance(part, str)] == [caption]
        others = {other for names in NAMES.values() for other in names} - {name}
        assert re.search(rf"\b{name}\b", caption)
        # "This is an ankle boot" names no other class, nor does "a photo of a one".
        assert not any(re.search(rf"\b{other}\b", caption) for other in others)
        if task == "image_to_caption":
            assert caption in document.fields["references"]
            assert len(set(document.fields["references"])) == len(CAPTIONS)
    shown = [all_seen(document)[0] for document in by_task[task]]
    assert_even(Counter(noun for noun, _ in shown), 2, NUM)
    garments = [name for noun, name in shown if noun == "garment"]
    assert_even(Counter(garments), 4, len(garments))


def test_picture_and_caption_stand_in_the_order_of_the_task(by_task):
    assert all(isinstance(document.parts[0], str) for document in by_task["caption_to_image"])
    assert all(isinstance(document.parts[-1], str) for document in by_task["image_to_caption"])


def test_which_is_answered_by_the_name_of_the_class(by_task):
    for document in by_task["which"]:
        ((noun, name),) = all_seen(document)
        assert noun in document.fields["question"]
        assert document.fields["answer"] == name
        assert text_of(document) == f"<>Q: {document.fields['question']} A: {name}"


def test_how_many_is_answered_by_counting(by_task):
    numbers = Counter()
    for document in by_task["how_many"]:
        shown = all_seen(document)
        count = sum(name == document.fields["asked_name"] for _, name in shown)
        assert document.fields["answer"] == NUMBER_WORDS[count]
        assert text_of(document) == f"{'<>' * len(shown)}Q: {document.fields['question']} A: {NUMBER_WORDS[count]}"
        assert plural_of(document.fields["asked_name"]) in document.fields["question"]
        numbers[len(shown), count] += 1
    for total in (2, 3, 4):
        of_total = Counter({count: number for (length, count), number in numbers.items() if length == total})
        assert_even(of_total, total + 1, of_total.total())


def test_is_there_is_answered_by_looking(by_task):
    for document in by_task["is_there"]:
        present = document.fields["asked_name"] in [name for _, name in all_seen(document)]
        assert document.fields["answer"] == ("yes" if present else "no")
        assert with_article(document.fields["asked_name"]) in document.fields["question"]
        assert text_of(document).endswith(f"Q: {document.fields['question']} A: {document.fields['answer']}")


def test_yes_and_no_are_as_likely_for_every_question_and_number_of_pictures(by_task):
    answers = Counter((d.fields["asked_name"], d.fields["answer"]) for d in by_task["is_there"])
    for name in {name for name, _ in answers}:
        of_name = Counter({answer: answers[name, answer] for answer in ("yes", "no")})
        assert_even(of_name, 2, of_name.total())
    for length in (1, 2, 3):
        of_length = Counter(d.fields["answer"] for d in by_task["is_there"] if len(d.fields["labels"]) == length)
        assert_even(of_length, 2, of_length.total())


@pytest.mark.parametrize("task", ["is_there", "how_many", "few_shot", "two_image_prompt"])
def test_pictures_of_one_question_are_of_one_pool(by_task, task):
    assert all(len(set(document.fields["pools"])) == 1 for document in by_task[task])


def test_the_right_answer_stands_at_every_place(by_task):
    """The one that is asked for is as often first as last, so that one place alone tells nothing."""
    three = [d for d in by_task["is_there"] if len(d.fields["labels"]) == 3 and d.fields["answer"] == "yes"]
    places = Counter(d.fields["label_names"].index(d.fields["asked_name"]) for d in three)
    assert_even(places, 3, len(three))


def test_running_texts_name_each_picture_before_they_show_it(by_task):
    lengths = Counter()
    mixed = 0
    for document in by_task["interleaved"]:
        shown = all_seen(document)
        texts = [part for part in document.parts if isinstance(part, str)]
        assert len(texts) == len(shown) + 1
        assert all(with_article(name) in text for (_, name), text in zip(shown, texts, strict=False))
        lengths[len(shown)] += 1
        mixed += len({noun for noun, _ in shown}) == 2
    assert_even(lengths, 3, NUM)
    # Of 2, 3, 4 pictures from two pools 1/2, 3/4, 7/8 are mixed: 71%, and five standard deviations of 1.4%.
    assert 0.64 < mixed / NUM < 0.78


def test_examples_tell_the_invented_names(by_task):
    for document in by_task["few_shot"]:
        fields, text = document.fields, text_of(document)
        names = re.fullmatch(r"Two names: (\w+) and (\w+)\.((?:<>\w+\.)+)", text)
        assert names is not None, text
        assert [names[1], names[2]] == fields["choices"]
        told = re.findall(r"<>(\w+)\.", names[3])
        assert len(told) == fields["num_shots"] + 1
        assert told[-1] == fields["answer"]
        # One name per class and one class per name, the picture in question included.
        assert len(set(zip(fields["labels"], told, strict=True))) == len(set(fields["labels"])) == len(set(told))
        assert set(told) <= set(fields["choices"])
        examples = Counter(fields["labels"][:-1])
        assert not examples or max(examples.values()) == -(-fields["num_shots"] // 2)
    assert_even(Counter(d.fields["num_shots"] for d in by_task["few_shot"]), len(NUM_SHOTS), NUM)


def test_a_class_has_another_invented_name_in_another_document(by_task):
    given = {name: Counter() for names in NAMES.values() for name in names}
    for document in by_task["few_shot"]:
        given[document.fields["label_names"][-1]][document.fields["answer"]] += 1
    # A class has 125 documents or more: it misses 24 (23/24)^125 = 0.1 of the 24 names on average.
    assert all(len(counts) >= len(INVENTED) - 2 for counts in given.values())


def test_the_place_in_the_list_and_the_last_example_tell_nothing(by_task):
    documents = by_task["few_shot"]
    assert_even(Counter(d.fields["choices"].index(d.fields["answer"]) for d in documents), 2, NUM)
    four = [d for d in documents if d.fields["num_shots"] == 4]
    assert_even(Counter(d.fields["labels"][-1] == d.fields["labels"][-2] for d in four), 2, len(four))


def test_invented_names_occur_in_no_other_task(by_task):
    words = set(INVENTED)
    assert len(words) == len(INVENTED)
    for task, documents in by_task.items():
        if task != "few_shot":
            assert not any(words & set(re.findall(r"\w+", text_of(document))) for document in documents)


def test_another_picture_of_the_first_kind_is_another_picture(by_task):
    for document in by_task["two_image_prompt"]:
        first, second, last = document.fields["labels"]
        assert first == last != second
        assert isinstance(document.parts[-1], RawImage)


def test_phrasings_are_short_ascii_texts():
    single = (*phrasings.CAPTIONS, *phrasings.WHICH, *phrasings.HOW_MANY, *phrasings.IS_THERE)
    several = [text for texts in (*phrasings.STORIES, *phrasings.MORE_LIKE_THE_FIRST) for text in texts]
    # 40 bytes: a question and two answers stay below the 49 latents of one small picture.
    assert all(0 < len(text) <= 40 and text.isascii() for text in (*single, *several))


def test_names_are_never_formatted(tmp_path):
    pool = write_pool(tmp_path / "digit.npz", "digit")
    names = ["{name}", "{0.__class__}", "}{"]
    config = ComposedDataConfig(pools={"digit": PoolConfig(path=pool.path, names=names, validation_ratio=0.0)})
    documents = open_composed(config, part="train")
    captions = [documents[i].fields["caption"] for i in range(100) if "caption" in documents[i].fields]
    assert captions
    assert all(any(name in caption for name in names) for caption in captions)


@pytest.mark.parametrize(
    ("name", "article", "plural"),
    [
        ("one", "a one", "ones"),
        ("eight", "an eight", "eights"),
        ("six", "a six", "sixes"),
        ("T-shirt", "a T-shirt", "T-shirts"),
        ("Ankle boot", "an Ankle boot", "Ankle boots"),
        ("dress", "a dress", "dresses"),
        ("unicorn", "a unicorn", "unicorns"),
    ],
)
def test_articles_and_plurals_follow_the_letters(name, article, plural):
    assert (with_article(name), plural_of(name)) == (article, plural)


def test_a_dealer_deals_all_pictures_of_a_class_alike_and_none_twice(tmp_path):
    opened = open_composed(ComposedDataConfig(pools={"digit": write_pool(tmp_path / "a.npz", "digit")}), part="train")
    (pool,) = opened.pools
    last = Counter()
    for key in range(NUM):
        dealer = Dealer(opened.pools, key)
        keys = [dealer.picture(pool, 1).key for _ in range(4)]
        assert len(set(keys)) == 4
        last[keys[-1]] += 1
    assert set(last) == set(range(PER_CLASS, 2 * PER_CLASS))
    assert_even(last, PER_CLASS, NUM)
