"""Composed documents as a data set: pure functions of their config, parts apart, prompts that join, refusals."""

import dataclasses
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlm.config import ConfigError, from_mapping, to_mapping
from latentlm.data.documents import DocumentDataConfig, RawDocument, RawImage, open_documents, write_jsonl
from latentlm.data.documents.composed import (
    TASKS,
    ComposedDataConfig,
    ComposedDocuments,
    PoolConfig,
    fit_pictures,
    open_composed,
    split_prompt,
)
from latentlm.data.records import BadRecord, DataError

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
PARTS = ("train", "validation", "test")
NUM = 300


def digits_config(**options) -> ComposedDataConfig:
    # A fifth of 1258 digits is held out: some 25 of each class.
    pool = PoolConfig(source="digits", names=DIGITS, validation_ratio=0.2)
    return ComposedDataConfig(pools={"digit": pool}, num_documents=NUM, num_held_out_documents=NUM, **options)


@pytest.fixture(scope="module")
def opened():
    return {part: open_composed(digits_config(), part=part) for part in PARTS}


def all_of(documents: ComposedDocuments) -> list[RawDocument]:
    return [documents[index] for index in range(len(documents))]


def pictures_of(document: RawDocument) -> list[RawImage]:
    return [part for part in document.parts if isinstance(part, RawImage)]


def comparable(document: RawDocument, said) -> tuple:
    return said(document), document.key, document.name, dict(document.fields)


def write_npz(path, labels, *, size: int = 2, **more):
    """A NPZ of one picture per label, filled with its place in the file."""
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None].repeat(size, 1).repeat(size, 2)
    np.savez(path, images=images, labels=np.asarray(labels), **more)
    return str(path)


def npz_config(path, **options) -> ComposedDataConfig:
    return ComposedDataConfig(pools={"thing": PoolConfig(path=path, validation_ratio=0.0, **options)})


@pytest.mark.parametrize("part", PARTS)
def test_documents_are_a_pure_function_of_config_part_and_index(part, opened, said):
    again = open_composed(digits_config(), part=part)
    backwards = [comparable(again[index], said) for index in reversed(range(50))]
    assert [comparable(opened[part][index], said) for index in range(50)] == backwards[::-1]


def test_another_seed_and_another_part_make_other_documents(opened, said):
    other = open_composed(digits_config(seed=1), part="train")
    assert [said(document) for document in all_of(other)] != [said(document) for document in all_of(opened["train"])]
    keys = [document.key for documents in (other, *opened.values()) for document in all_of(documents)]
    assert len(set(keys)) == 4 * NUM


def test_more_documents_begin_with_the_same_ones(opened, said):
    longer = open_composed(dataclasses.replace(digits_config(), num_documents=2 * NUM), part="train")
    assert (len(longer), len(opened["train"]), len(opened["test"])) == (2 * NUM, NUM, NUM)
    for index in range(50):
        assert comparable(longer[index], said) == comparable(opened["train"][index], said)


def test_a_copy_in_another_process_composes_the_same(opened, said):
    copy = pickle.loads(pickle.dumps(opened["train"]))  # noqa: S301  (our own bytes)
    assert comparable(copy[7], said) == comparable(opened["train"][7], said)


def test_indices_outside_are_refused(opened):
    for index in (-1, NUM):
        with pytest.raises(IndexError, match=f"index {index} of {NUM} documents"):
            opened["train"][index]


def test_no_picture_is_in_two_parts_and_every_class_is_in_each(opened):
    shown = {}
    for part, documents in opened.items():
        fields = [document.fields for document in all_of(documents)]
        shown[part] = {key for field in fields for key in field["picture_keys"]}
        assert {name for field in fields for name in field["label_names"]} == set(DIGITS)
    assert not shown["train"] & shown["validation"]
    assert not shown["train"] & shown["test"]
    assert not shown["validation"] & shown["test"]


def test_validation_pictures_are_those_that_the_split_of_the_pool_holds_out(opened):
    from latentlm.data.datasets import open_images

    held_out = open_images(digits_config().pools["digit"].image_data(), part="validation")
    keys = set(held_out.source.keys(held_out.indices).tolist())
    assert {key for doc in all_of(opened["validation"]) for key in doc.fields["picture_keys"]} <= keys


def test_a_test_file_of_its_own_gives_the_test_pictures(tmp_path):
    train, test = write_npz(tmp_path / "a.npz", [0, 1] * 10), write_npz(tmp_path / "b.npz", [0, 1] * 10)
    config = npz_config(train, test_path=test)
    for part, path in (("train", train), ("test", test)):
        documents = open_composed(config, part=part)
        pictures = [picture for index in range(50) for picture in pictures_of(documents[index])]
        assert all(picture.name.startswith(f"{path}[") for picture in pictures)


@settings(deadline=None, max_examples=60)  # the machine's speed is not what is tested
@given(seed=st.integers(-(2**70), 2**70), index=st.integers(0, NUM - 1), task=st.sampled_from(sorted(TASKS)))
def test_prompt_and_answer_of_every_task_join_to_the_document(opened, seed, index, task):
    config = digits_config(seed=seed, tasks={task: 0.5})
    document = ComposedDocuments(opened["train"].pools, config, "train")[index]
    assert document.fields["task"] == task
    prompt, answer = split_prompt(document)
    assert prompt
    assert answer
    joined = list(prompt)
    if isinstance(joined[-1], str) and isinstance(answer[0], str):
        joined[-1:] = [joined[-1] + answer[0], *answer[1:]]
    else:
        joined += answer
    assert len(joined) == len(document.parts)
    assert all(a is b or a == b for a, b in zip(joined, document.parts, strict=True))
    texts = [part for part in document.parts if isinstance(part, str)]
    assert all(text and text.isascii() for text in texts)
    pictures = [isinstance(part, RawImage) for part in document.parts]
    assert all(one or other for one, other in zip(pictures, pictures[1:], strict=False)), "two texts side by side"
    # None is shown twice: an example that is the question too would give its answer away.
    assert len(set(document.fields["picture_keys"])) == sum(pictures)


def test_documents_survive_a_way_through_json_lines(opened, tmp_path, said):
    documents = all_of(opened["train"])[:60]
    assert write_jsonl(tmp_path / "made.jsonl", documents) == 60
    read = open_documents(DocumentDataConfig(path=str(tmp_path / "made.jsonl"), validation_ratio=0.0), part="train")
    for index, document in enumerate(documents):
        assert dict(read[index].fields) == dict(document.fields)
        for part, expected in zip(split_prompt(read[index]), split_prompt(document), strict=True):
            assert [p for p in part if isinstance(p, str)] == [p for p in expected if isinstance(p, str)]
            assert len(part) == len(expected)


def test_documents_of_other_origin_have_no_prompt_to_split():
    with pytest.raises(ValueError, match=r"a\.jsonl:1: does not say where its answer begins"):
        split_prompt(RawDocument(("text",), 0, "a.jsonl:1"))
    edited = RawDocument(("Q: changed? A: yes",), 0, "b", {"answer_part": 0, "answer_prefix": "Q: before?"})
    with pytest.raises(ValueError, match=r"part 0 does not begin with 'Q: before\?'"):
        split_prompt(edited)


def test_pictures_stay_as_they_are_until_they_are_fitted(opened):
    document = opened["train"][0]
    assert all(picture.data.shape == (8, 8) for picture in pictures_of(document))
    assert fit_pictures(document, digits_config()) is document
    fitted = fit_pictures(document, digits_config(image_size=12, num_channels=1))
    assert all(picture.data.shape == (12, 12, 1) for picture in pictures_of(fitted))
    assert (fitted.key, fitted.fields) == (document.key, document.fields)
    with pytest.raises(BadRecord, match="above the limit of 10"):
        fit_pictures(document, digits_config(image_size=12, max_pixels=10))


def test_tasks_are_mixed_by_weight(opened):
    tasks = {"which": 3.0, "is_there": 1.0, "few_shot": 0.0}
    config = digits_config(tasks=tasks)
    documents = ComposedDocuments(opened["train"].pools, dataclasses.replace(config, num_documents=2000), "train")
    names = [document.fields["task"] for document in all_of(documents)]
    assert set(names) == {"which", "is_there"}
    # Five standard deviations of a binomial count: sqrt(2000 * 3/4 * 1/4) = 19.
    assert abs(names.count("which") - 1500) < 5 * 19.4


def test_the_fingerprint_tells_what_decides_the_documents(tmp_path):
    path = write_npz(tmp_path / "a.npz", [0, 1] * 10)
    config = npz_config(path)
    prints = [open_composed(config, part="train").fingerprint()]
    assert open_composed(config, part="train").fingerprint() == prints[0]
    named = npz_config(path, names=["cat", "dog"])
    changed = [{"seed": 1}, {"tasks": {"which": 1.0}}, {"num_documents": 5}]
    for one in (named, *(dataclasses.replace(config, **change) for change in changed)):
        prints.append(open_composed(one, part="train").fingerprint())
    os.utime(path, (1, 1))
    prints.append(open_composed(config, part="train").fingerprint())
    # Other labels in a file of the same length and time.
    write_npz(tmp_path / "a.npz", [1, 0] * 10)
    os.utime(path, (1, 1))
    prints.append(open_composed(config, part="train").fingerprint())
    assert len(set(prints)) == len(prints)


def test_data_without_given_names_use_their_own(tmp_path):
    path = write_npz(tmp_path / "a.npz", ["cat", "dog"] * 10)
    documents = open_composed(npz_config(path), part="train")
    assert documents.pools[0].names == ("cat", "dog")
    assert documents.pools[0].plurals == ("cats", "dogs")


def test_given_plurals_are_used(tmp_path):
    path = write_npz(tmp_path / "a.npz", [0, 1] * 10)
    config = npz_config(path, names=["mouse", "goose"], plurals=["mice", "geese"])
    documents = open_composed(dataclasses.replace(config, tasks={"how_many": 1.0}, num_documents=20), part="train")
    questions = [document.fields["question"] for document in all_of(documents)]
    assert all("mice" in question or "geese" in question for question in questions)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 1, 2] * 8, {"names": ["cat", "dog"]}, "its labels go up to 2, but there are 2 names"),
        ([0, 1, 1] * 3, {"names": ["cat", "dog"]}, r"needs 4 pictures in the part 'train', too few have cat \(3\)"),
        ([0, 1] * 8, {"names": ["cat", "dog", "cow"]}, r"too few have cow \(0\)"),
        ([0] * 8, {"names": ["cat"]}, "has one class alone, 'cat'"),
        ([0, 1] * 8, {"names": ["cat", " "]}, "a class has a blank name"),
        ([0, 1] * 8, {"names": ["cat", "Cat"]}, "cat: the name of more than one class"),
        ([0, 1] * 8, {"names": ["cat", "wug"]}, "wug: an invented name of the task few_shot"),
    ],
)
def test_pools_that_cannot_be_written_about_are_refused(labels, options, message, tmp_path):
    path = write_npz(tmp_path / "a.npz", labels)
    with pytest.raises(DataError, match=message):
        open_composed(npz_config(path, **options), part="train")


def test_a_name_that_two_pools_share_is_refused(tmp_path):
    path = write_npz(tmp_path / "a.npz", [0, 1] * 8)
    pool = PoolConfig(path=path, names=["cat", "dog"], validation_ratio=0.0)
    with pytest.raises(DataError, match="cat, dog: the name of more than one class"):
        open_composed(ComposedDataConfig(pools={"animal": pool, "pet": pool}), part="train")


def test_pictures_without_labels_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((8, 2, 2), np.uint8))
    with pytest.raises(DataError, match=r"pools.thing: .*a\.npz has no labels to write about"):
        open_composed(npz_config(str(tmp_path / "a.npz")), part="train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pools": {}}, "pools is empty"),
        ({"pools": {" ": {"source": "digits"}}}, "a pool has a blank name"),
        ({"tasks": {"wich": 1.0}}, "tasks names wich, but the tasks are caption_to_image, "),
        ({"tasks": {"which": -1.0}}, "a weight that is negative or no number"),
        ({"tasks": {"which": float("nan")}}, "a weight that is negative or no number"),
        ({"tasks": {"which": 0.0}}, "tasks gives no task a weight above 0"),
        ({"tasks": {}}, "tasks gives no task a weight above 0"),
        ({"num_documents": 0}, "num_documents is 0"),
        ({"num_held_out_documents": 0}, "num_held_out_documents is 0"),
        ({"image_size": 0}, "image_size is 0"),
        ({"num_channels": 2}, "num_channels is 2"),
        ({"max_pixels": 0}, "max_pixels is 0"),
        ({"max_bad_records": -1}, "max_bad_records is -1"),
        ({"pools": {"digit": {"source": "digits", "names": ["a"], "plurals": ["x", "y"]}}}, "2 entries for 1 names"),
        ({"pools": {"digit": {"source": "digits", "test_path": "b.npz"}}}, "leave the paths out"),
        ({"pools": {"digit": {}}}, "no data: give path"),
        ({"pools": {"digit": {"source": "digits", "validation_ratio": 1.0}}}, "validation_ratio is 1.0"),
        ({"pools": {"digit": {"source": "digits", "name": ["a"]}}}, "did you mean pools.digit.names"),
    ],
)
def test_configs_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(ComposedDataConfig, {"pools": {"digit": {"source": "digits"}}, **change})


def test_a_config_is_read_back_as_it_was_written():
    config = digits_config(tasks={"which": 2.0}, image_size=28)
    assert from_mapping(ComposedDataConfig, to_mapping(config)) == config
    assert config.validation_ratio == 0.2
