"""Intervals by the bootstrap, against what is known of shares and ratios."""

import pytest

from latentlm.evaluation.intervals import bootstrap_ratio


def test_the_bootstrap_interval_of_a_share_has_the_binomial_width():
    interval = bootstrap_ratio([1.0] * 60 + [0.0] * 140)
    assert interval.estimate == pytest.approx(0.3)
    # 1.96 sqrt(0.3 · 0.7 / 200) = 0.0635 on either side; 2,000 draws of 200 trials, each a multiple of 1/200.
    assert interval.high - interval.low == pytest.approx(0.127, abs=0.015)
    assert bootstrap_ratio([1.0] * 60 + [0.0] * 140) == interval, "the same seed gives the same interval"


def test_ratios_weigh_trials_by_their_denominators():
    interval = bootstrap_ratio([1, 0], [1, 9])
    assert interval.estimate == pytest.approx(0.1)
    assert (interval.low, interval.high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="no trials"):
        bootstrap_ratio([])
    with pytest.raises(ValueError, match="sum to zero"):
        bootstrap_ratio([1.0], [0.0])
