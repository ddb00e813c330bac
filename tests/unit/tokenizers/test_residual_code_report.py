"""The report of a residual-quantized tokenizer: counts by codebook and rates, by hand."""

import pytest
import torch

from latentlm.tokenizers.residual_code_report import report_residual_codes


def test_use_and_rates_by_hand() -> None:
    # The first codebook uses two of four codes evenly, the second one only; over two batches.
    first = torch.tensor([[[0, 3], [1, 3]]])
    report = report_residual_codes([first, first.flip(1)], num_codes=4, beta=0.25, frame_rate=40.0)
    assert [stage.num_used_codes for stage in report.stages] == [2, 1]
    assert [stage.perplexity for stage in report.stages] == pytest.approx([2, 1])
    assert report.codes_per_second == 80
    assert report.bits_per_second == 160
    assert report.entropy_bits_per_second == pytest.approx(40)  # one bit a frame
    content = report.as_json()
    assert (content["num_quantizers"], content["num_examples"], content["beta"]) == (2, 2, 0.25)
    markdown = report.as_markdown()
    assert "| 0 | 4 | 2 (50%) | 2 |" in markdown
    assert "40 frames, 80 codes and 160 bits per second (40 by entropy)" in markdown


def test_a_report_on_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one example"):
        report_residual_codes([], num_codes=4, beta=0.25, frame_rate=40.0)
