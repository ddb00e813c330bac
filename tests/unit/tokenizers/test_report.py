"""The tokenizer report on posteriors whose answers are known."""

import json
import math

import pytest
import torch

from latentlm.tokenizers.base import Posterior
from latentlm.tokenizers.bottleneck import BottleneckConfig
from latentlm.tokenizers.report import report_tokenizer


def known_posteriors(*, log_std: list[float] | None = None) -> list[Posterior]:
    """Means of deviation 3, 0.75 and 0.01 around other centres, in two batches of unequal size."""
    signs = torch.tensor([1.0, -1.0]).repeat(6).view(12, 1, 1)
    means = torch.tensor([5.0, 0.0, -2.0]) + signs * torch.tensor([3.0, 0.75, 0.01]).expand(12, 4, 3)
    logs = None if log_std is None else torch.tensor(log_std).expand(12, 4, 3)
    cut = 5  # not a multiple of the pattern: batches do not have the mean of the whole
    return [
        Posterior(means[part], None if logs is None else logs[part]) for part in (slice(None, cut), slice(cut, None))
    ]


def test_ratio_dead_channels_and_rate_of_a_sigma_vae() -> None:
    report = report_tokenizer(known_posteriors(), BottleneckConfig(latent_sigma=0.75), beta=0.01)
    assert [channel.mean_std for channel in report.channels] == pytest.approx([3, 0.75, 0.01], rel=1e-4)
    assert [channel.ratio for channel in report.channels] == pytest.approx([4, 1, 0.01 / 0.75], rel=1e-4)
    assert report.dead_channels == [2]
    per_latent = sum(0.5 * math.log2(1 + ratio**2) for ratio in (4, 1, 0.01 / 0.75))
    assert report.bits_per_example == pytest.approx(4 * per_latent, rel=1e-4)
    assert (report.num_examples, report.num_latents, report.floats_per_example) == (12, 4, 12)


def test_a_vae_is_reported_with_its_learned_sigmas() -> None:
    posteriors = known_posteriors(log_std=[math.log(0.3), math.log(0.75), 0.0])
    report = report_tokenizer(posteriors, BottleneckConfig(kind="vae", latent_sigma=9.0), beta=1e-4)
    assert [channel.sigma for channel in report.channels] == pytest.approx([0.3, 0.75, 1.0], rel=1e-5)
    assert report.dead_channels == [2]


def test_an_autoencoder_has_no_finite_rate() -> None:
    report = report_tokenizer(known_posteriors(), BottleneckConfig(kind="ae"), beta=0.0)
    assert report.bits_per_example == math.inf
    assert report.dead_channels == []
    assert json.loads(json.dumps(report.as_json(), allow_nan=False))["bits_per_example"] is None


def test_the_table_has_a_row_per_channel_and_names_beta() -> None:
    table = report_tokenizer(known_posteriors(), BottleneckConfig(), beta=0.02).as_markdown()
    assert table.count("\n| ") == 3
    assert "dead" in table.splitlines()[4]
    assert "beta 0.02" in table


def test_a_report_on_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one example"):
        report_tokenizer([], BottleneckConfig(), beta=0.0)
