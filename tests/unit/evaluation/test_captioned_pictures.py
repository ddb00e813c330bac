"""Captioned pictures: kinds, facts of written captions, other pictures of a class, scores against own references."""

import pytest
import torch
from tiny_judges import tiny_judges

from latentlm.data.documents import RawDocument, RawImage
from latentlm.evaluation.captioned_pictures import (
    answer_picture,
    ask_for_last,
    caption_facts,
    caption_key,
    kinds_of,
    majority_facts,
    others_of_class,
    score_drawn,
)
from latentlm.evaluation.document_protocol import Asked
from latentlm.evaluation.image_scores import LabelledImages

RED = {"caption": "red apple", "style": "flat", "group": "food"}
GREEN = {"caption": "green apple", "style": "flat", "group": "food"}
DOG = {"caption": "dog", "style": "solid", "group": "animals"}
KNOWN = {caption_key(f"{one['caption']}, {one['style']}"): one for one in (RED, GREEN, DOG)}


def captioned(fields: dict[str, str]) -> Asked:
    return Asked((torch.zeros(1, 2, 2),), (f"{fields['caption']}, {fields['style']}",), fields)


def test_a_written_caption_has_the_facts_of_the_record_that_it_names() -> None:
    asked = [captioned(one) for one in (RED, RED, DOG, DOG)]
    said = [" Red apple, flat", "green apple, flat", "cat, solid", "dog, solid"]
    shares = caption_facts(said, asked, KNOWN, ["caption", "group", "style"])
    assert {name: share.share for name, share in shares.items()} == {
        "exact": 0.5,
        "caption": 0.5,
        "group": 0.75,  # another apple is food too; what no record is called has no fact right
        "style": 0.75,
    }


def test_the_majority_names_the_most_frequent_training_value() -> None:
    shares = majority_facts([RED, GREEN, DOG], [captioned(RED), captioned(DOG)], ["group", "style"])
    assert {name: share.share for name, share in shares.items()} == {"group": 0.5, "style": 0.5}


def test_kinds_stand_beside_all() -> None:
    fields = [{"kind": "new"}, {"kind": "old"}, {"kind": "new"}]
    assert kinds_of(fields, "kind") == {"all": [0, 1, 2], "new": [0, 2], "old": [1]}
    assert kinds_of(fields, None) == {"all": [0, 1, 2]}
    with pytest.raises(ValueError, match="a document has no sort, by which kinds are told; it has kind"):
        kinds_of(fields, "sort")


def test_all_but_the_last_part_is_given() -> None:
    image = RawImage(b"", "x")
    asked = ask_for_last(RawDocument(("a", image), key=0, name="x"), lambda _: torch.full((1, 2, 2), 255).byte())
    assert asked.prompt == ("a",)
    assert torch.equal(answer_picture(asked), torch.ones(1, 2, 2))
    with pytest.raises(ValueError, match="x has one part alone"):
        ask_for_last(RawDocument(("a",), key=0, name="x"), lambda _: torch.zeros(1, 2, 2).byte())


def test_other_pictures_have_the_same_classes_and_none_comes_twice_in_vain() -> None:
    images = torch.arange(6.0).view(6, 1, 1, 1)
    reference = LabelledImages(images=images, labels=torch.tensor([0, 0, 0, 1, 1, 1]))
    labels = torch.tensor([1, 0, 1, 1, 1])
    chosen = others_of_class(reference, labels)
    assert torch.equal(chosen.labels, labels)
    ones = chosen.images[[0, 2, 3]].flatten().tolist()
    assert sorted(ones) == [3.0, 4.0, 5.0]
    assert chosen.images[4].item() == ones[0], "then from the first on again"
    with pytest.raises(ValueError, match="no reference of class 2"):
        others_of_class(reference, torch.tensor([2]))


def test_drawn_pictures_are_near_their_own_references_and_noise_is_not() -> None:
    judges = tiny_judges()
    real = judges.test.subset(torch.arange(100))
    noise = torch.randn(real.images.shape, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    same = score_drawn(judges.panel, real, real)
    worse = score_drawn(judges.panel, LabelledImages(images=noise, labels=real.labels), real)
    for name in ("kernel", "kernel_second_space"):
        # Unbiased: pairs of a picture with itself make the distance of a set to itself slightly negative.
        assert getattr(same, name) <= 0 < getattr(worse, name)
    assert same.num_images == 100
