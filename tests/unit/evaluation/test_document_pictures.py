"""Pictures of captions, judged pool by pool, and the sampling that they are drawn with."""

import dataclasses

import numpy as np
import pytest
from document_pipelines import Scripted, digits_asked
from PIL import Image
from tiny_judges import tiny_judges

from latentlm.config import ConfigError
from latentlm.evaluation.document_answers import AskOptions, ask_for_pictures, sampling_changed
from latentlm.evaluation.document_pictures import ALL, PoolPanels, asked_labels, label_ranges, own_pictures
from latentlm.evaluation.image_scores import LabelledImages

RANGES = {"low": range(4), "high": range(4, 10)}


def test_labels_of_pools_are_numbered_on_in_their_order():
    ranges = label_ranges({"digit": 10, "garment": 3})
    assert ranges == {"digit": range(10), "garment": range(10, 13)}
    fields = [{"pools": ["garment"], "labels": [2]}, {"pools": ["digit"], "labels": [7]}]
    assert asked_labels(fields, ranges).tolist() == [12, 7]


def test_each_pool_is_compared_with_its_own_references():
    judges = tiny_judges()
    scores = PoolPanels(judges, RANGES).score(judges.test)
    assert list(scores) == [ALL, "low", "high"]
    assert scores[ALL] == judges.panel.score(judges.test)
    assert sum(scores[noun].num_images for noun in RANGES) == scores[ALL].num_images
    low = judges.test.subset((judges.test.labels < 4).nonzero()[:, 0])
    reference = judges.panel.reference
    only_low = dataclasses.replace(judges.panel, reference=reference.subset((reference.labels < 4).nonzero()[:, 0]))
    assert scores["low"] == only_low.score(low)
    # Real low digits are nearer to low references than to all.
    assert scores["low"].frechet < judges.panel.score(low).frechet


def test_judges_of_other_classes_than_those_of_the_pools_are_refused():
    with pytest.raises(ValueError, match="the judges know 10 classes, but the pools digit, garment have 20"):
        PoolPanels(tiny_judges(), label_ranges({"digit": 10, "garment": 10}))


def test_the_pictures_that_captions_end_with_are_real_ones_under_their_labels():
    asked = digits_asked("caption_to_image", 30)
    real = own_pictures(asked, {"digit": range(10)})
    test = tiny_judges().test
    for image, label in zip(real.images, real.labels, strict=True):
        same = (test.images == image).flatten(1).all(dim=1).nonzero()[:, 0]
        assert label in test.labels[same]
    assert isinstance(real, LabelledImages)


def test_pictures_come_as_pixels_in_the_order_of_their_prompts():
    def reply(prompt, options):
        assert (options["images"], options["max_new_tokens"]) == (1, 0)
        return (Image.fromarray(np.full((4, 6), int(prompt[0]), dtype=np.uint8)),), "spans"

    pictures = ask_for_pictures(Scripted(reply), [("0",), ("255",), ("51",)], AskOptions(batch_size=2))
    assert pictures.shape == (3, 1, 4, 6)
    assert pictures[:, 0, 0, 0].tolist() == pytest.approx([-1.0, 1.0, -0.6])


def test_sampling_is_changed_meanwhile_and_then_what_it_was():
    pipeline = Scripted(lambda prompt, options: ((), "eos"))
    before = pipeline.sampling["image"]
    with sampling_changed(pipeline, {"cfg_scale": 3.0, "solver.num_inference_steps": 7}):
        assert pipeline.sampling["image"].cfg_scale == 3.0
        assert pipeline.sampling["image"].solver.num_inference_steps == 7
    assert pipeline.sampling["image"] is before


@pytest.mark.parametrize("name", ["cgf_scale", "cfg_scale.deeper", "nothing.deeper"])
def test_an_option_that_does_not_exist_is_refused(name):
    pipeline = Scripted(lambda prompt, options: ((), "eos"))
    with pytest.raises((ConfigError, ValueError), match=name.split(".")[0]), sampling_changed(pipeline, {name: 1.0}):
        pass
