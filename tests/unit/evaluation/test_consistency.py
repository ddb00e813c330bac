"""R-precision by hand: an encoder whose features are written down."""

import pytest
import torch

from latentlm.evaluation.consistency import caption_consistency, r_precision
from latentlm.evaluation.dual_encoder import DualEncoder, DualEncoderConfig

CAPTIONS = [f"picture {i}" for i in range(8)]


class Axes(DualEncoder):
    """Caption i of `CAPTIONS` is the axis i; a picture [8, 1, 1] is the direction of its channels."""

    def __init__(self) -> None:
        config = DualEncoderConfig(num_features=8, width=8, text_width=8, num_text_layers=1)
        super().__init__(config, num_channels=8)

    def caption_features(self, captions):
        return torch.eye(8)[[CAPTIONS.index(caption) for caption in captions]]

    def picture_features(self, images):
        return torch.nn.functional.normalize(images.flatten(1), dim=1)


def pictures(*similarities: list[float]) -> torch.Tensor:
    return torch.tensor(similarities)[..., None, None]


DESCENDING = [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]


def test_the_own_caption_counts_when_it_is_first_or_among_the_first_five():
    # The same picture, asked for under the captions that stand first, second, fifth and sixth.
    asked = [CAPTIONS[i] for i in (0, 1, 4, 5)]
    scores = r_precision(Axes(), pictures(*[DESCENDING] * 4), asked, CAPTIONS)
    assert scores.as_json() == {"num_pictures": 4, "num_captions": 8, "at_1": 1 / 4, "at_5": 3 / 4}


def test_ties_count_against():
    tied = pictures([1.0, 1.0, 0, 0, 0, 0, 0, 0], [1.0] * 8)
    scores = r_precision(Axes(), tied, [CAPTIONS[0], CAPTIONS[0]], CAPTIONS)
    assert (scores.at_1, scores.at_5) == (0, 0.5), "a picture as near to every caption as to its own knows nothing"


def test_repeated_candidates_count_once_and_their_order_plays_no_part():
    asked = [CAPTIONS[i] for i in (0, 1, 4, 5)]
    images = pictures(*[DESCENDING] * 4)
    expected = r_precision(Axes(), images, asked, CAPTIONS)
    assert r_precision(Axes(), images, asked, [*CAPTIONS[::-1], *CAPTIONS, CAPTIONS[3].upper()]) == expected


def test_more_pictures_than_fit_at_once_are_all_ranked():
    images = torch.eye(8).repeat(150, 1)[..., None, None]
    asked = CAPTIONS * 149 + [CAPTIONS[0]] * 8
    scores = r_precision(Axes(), images, asked, CAPTIONS)
    assert scores.num_pictures == 1200
    assert scores.at_1 == pytest.approx((149 * 8 + 1) / 1200)


def test_captions_that_are_no_candidate_and_unequal_numbers_are_refused():
    with pytest.raises(ValueError, match="'picture 7' and 0 more captions are not among the candidates"):
        r_precision(Axes(), pictures(DESCENDING), [CAPTIONS[7]], CAPTIONS[:7])
    with pytest.raises(ValueError, match="in pairs, but got 1 and 2"):
        r_precision(Axes(), pictures(DESCENDING), CAPTIONS[:2], CAPTIONS)
    with pytest.raises(ValueError, match="in pairs, but got 0 and 0"):
        r_precision(Axes(), torch.zeros(0, 8, 1, 1), [], CAPTIONS)


def test_real_pictures_and_chance_stand_beside_the_samples():
    scores = caption_consistency(
        Axes(),
        pictures(DESCENDING, DESCENDING),
        [CAPTIONS[0], CAPTIONS[7]],
        real_images=torch.eye(8)[..., None, None],
        real_captions=CAPTIONS,
        candidates=CAPTIONS,
    )
    assert (scores.samples.at_1, scores.samples.at_5) == (0.5, 0.5)
    assert (scores.real_test.at_1, scores.real_test.at_5) == (1, 1)
    assert (scores.chance.at_1, scores.chance.at_5) == (1 / 8, 5 / 8)
    table = scores.as_markdown()
    assert "| samples | 2 | 8 | 50.0% | 50.0% |" in table
    assert "| real test pictures | 8 | 8 | 100.0% | 100.0% |" in table
    assert "| chance | 2 | 8 | 12.5% | 62.5% |" in table
    assert scores.as_json()["real_test"]["num_pictures"] == 8


def test_chance_is_no_more_than_certainty():
    scores = caption_consistency(
        Axes(),
        pictures(DESCENDING),
        CAPTIONS[:1],
        real_images=pictures(DESCENDING),
        real_captions=CAPTIONS[:1],
        candidates=CAPTIONS[:3],
    )
    assert (scores.chance.at_1, scores.chance.at_5) == (1 / 3, 1)
