"""Shares, likelihoods and switches of models of documents, on numbers that can be worked out by hand."""

import json
import math

import pytest
import torch

from latentlm.evaluation.document_scores import (
    AnswerScores,
    CaptioningScores,
    ChoiceScores,
    LikelihoodScores,
    Share,
    SwitchingScores,
)
from latentlm.evaluation.intervals import bootstrap_ratio
from latentlm.evaluation.scores_table import scores_table


def test_a_share_has_its_number_and_binomial_error():
    share = Share.of([True, False, False, False])
    assert (share.num, share.share, share.standard_error) == (4, 0.25, math.sqrt(0.25 * 0.75 / 4))


def test_a_share_is_recorded_with_its_interval_over_the_trials():
    successes = [True] * 60 + [False] * 140
    assert Share.of(successes).as_json() == bootstrap_ratio(successes).as_json()
    assert list(Share.of(successes).as_json()) == ["estimate", "low", "high", "num"]
    thirds = Share(num=3, share=2 / 3).as_json()
    assert (thirds["estimate"], thirds["num"]) == (2 / 3, 3), "successes are whole"


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="a share of no trials"):
        Share.of([])


def test_likelihood_is_weighted_by_targets_and_its_error_is_that_of_a_ratio():
    scores = LikelihoodScores.of(torch.tensor([2.0, 6.0], dtype=torch.float64), torch.tensor([2, 2]))
    assert (scores.num_documents, scores.num_targets, scores.nats_per_token) == (2, 4, 2.0)
    # Residuals -2 and 2: sqrt(8 · 2 / 1) / 4.
    assert scores.standard_error == pytest.approx(1.0)
    assert scores.perplexity == pytest.approx(math.exp(2))


def test_likelihood_of_equally_likely_tokens_has_no_error_however_long_documents_are():
    scores = LikelihoodScores.of(torch.tensor([3.0, 15.0], dtype=torch.float64), torch.tensor([1, 5]))
    assert scores.standard_error == 0.0


def test_an_infinite_perplexity_is_recorded_as_none():
    scores = LikelihoodScores.of(torch.tensor([4000.0, 4000.0], dtype=torch.float64), torch.tensor([1, 1]))
    assert scores.perplexity == math.inf
    assert scores.as_json()["perplexity"] is None


@pytest.mark.parametrize(("nll", "counts"), [([1.0], [1]), ([0.0, 0.0], [0, 0])])
def test_one_document_or_no_target_has_no_likelihood_with_an_error(nll, counts):
    with pytest.raises(ValueError, match="needs two and some targets"):
        LikelihoodScores.of(torch.tensor(nll, dtype=torch.float64), torch.tensor(counts))


def test_the_right_one_of_some_choices_is_worth_its_share_of_their_probability():
    thirds = torch.tensor([0.0, math.log(2), math.log(2)])  # probabilities 1/2, 1/4, 1/4
    scores = ChoiceScores.of([thirds, thirds], [0, 2])
    assert scores.likeliest == Share(num=2, share=0.5)
    assert scores.nats == pytest.approx((math.log(2) + math.log(4)) / 2)
    # Two values log 2 apart: their deviation is log 2 / sqrt(2), that of the mean sqrt(2) less.
    assert scores.nats_standard_error == pytest.approx(math.log(2) / 2)
    assert (scores.chance, scores.chance_nats) == (pytest.approx(1 / 3), pytest.approx(math.log(3)))
    assert scores.as_json()["share"] == Share(num=2, share=0.5).as_json()


def test_nats_common_to_all_choices_are_nobodys_merit():
    choices = [torch.tensor([3.0, 4.0]), torch.tensor([5.0, 1.0])]
    assert ChoiceScores.of(choices, [0, 0]) == ChoiceScores.of([of_one + 8 for of_one in choices], [0, 0])


def test_a_model_that_finds_all_choices_alike_gets_no_point_for_their_order():
    scores = ChoiceScores.of([torch.zeros(4)] * 3, [0, 1, 3])
    assert scores.likeliest.share == 0.0
    assert scores.nats == pytest.approx(scores.chance_nats)


def test_one_choice_has_no_mean_with_an_error():
    with pytest.raises(ValueError, match="1 choices: a mean with an error needs two"):
        ChoiceScores.of([torch.zeros(2)], [0])


def test_all_three_steps_of_a_switch_must_happen_to_the_same_prompt():
    scores = SwitchingScores.of([True, True, False], [True, False, False], [False, True, False])
    assert scores.opens.share == pytest.approx(2 / 3)
    assert scores.everything.share == 0.0
    assert list(scores.as_json()) == ["opens", "closes", "returns", "everything"]


def test_answers_without_a_majority_leave_its_row_out():
    half = Share.of([True, False])
    assert list(AnswerScores(model=half, blind=half).as_json()) == ["model", "blind"]
    assert "majority" in AnswerScores(model=half, blind=half, majority=half).as_markdown()


def test_every_score_has_a_table_and_is_plain_json():
    half = Share.of([True, False])
    likelihood = LikelihoodScores.of(torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.long))
    captioning = CaptioningScores(
        num_captions=2, references_per_caption=5.0, cider=1.0, exact_match=half, class_named=half
    )
    for scores in (half, likelihood, captioning, SwitchingScores.of([True], [True], [True])):
        assert scores_table({"row": scores}).count("\n") == 3
        json.dumps(scores.as_json(), allow_nan=False)
