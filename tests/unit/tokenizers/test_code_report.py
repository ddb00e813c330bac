"""The report of a codebook: counts, entropy, rate."""

import pytest
import torch

from latentlm.tokenizers.code_report import report_codes


def test_use_and_rate_are_counted_over_all_batches() -> None:
    batches = [torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 0, 1, 1], [5, 5, 5, 5]])]
    report = report_codes(batches, num_codes=16, beta=0.25)
    assert (report.num_examples, report.num_tokens, report.num_used_codes) == (3, 4, 3)
    assert report.used_share == 3 / 16
    assert report.perplexity == pytest.approx(3)  # three codes, four times each
    assert report.bits_per_example == 4 * 4
    assert report.entropy_bits_per_example == pytest.approx(4 * 1.5849625)  # 4 log2(3)
    assert report.as_json()["num_used_codes"] == 3
    assert "| 16 | 3 (19%) | 3 | 4 | 16 | 6 |" in report.as_markdown()


def test_a_report_on_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one example"):
        report_codes([], num_codes=16, beta=0.25)
