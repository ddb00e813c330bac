"""Scores of tokenizers: one that loses nothing, one that learned nothing, and codes."""

import json
from dataclasses import asdict

import pytest
import torch
from tiny_models import tiny_image_tokenizer

from latentlm.data import ImageDataConfig
from latentlm.evaluation.classifier import ClassifierConfig
from latentlm.evaluation.judges import Judges, JudgesConfig, load_judges
from latentlm.evaluation.second_space import SecondSpaceConfig
from latentlm.evaluation.tokenizer_scores import score_tokenizer
from latentlm.tokenizers.code_report import CodeReport
from latentlm.tokenizers.quantizer import QuantizerConfig
from latentlm.tokenizers.report import TokenizerReport
from latentlm.tokenizers.vit import ViTConfig
from latentlm.tokenizers.vq_image import VQImageTokenizer, VQImageTokenizerConfig


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Judges:
    config = JudgesConfig(
        judge=ClassifierConfig(num_steps=60, width=8, num_features=8),
        second_space=SecondSpaceConfig(num_features=8, width=8),
        selector=ClassifierConfig(num_steps=2, width=8, num_features=8, seed=1),
    )
    data = ImageDataConfig(source="digits", image_size=8, num_channels=1)
    return load_judges(data, cache_dir=tmp_path_factory.mktemp("judges"), config=config)


def test_the_pictures_themselves_are_perfect_and_an_untrained_tokenizer_is_not(judges):
    scores = score_tokenizer(tiny_image_tokenizer(), judges, beta=0.5)
    assert scores.reconstructions.keys() == {"mean", "sample", "real"}
    real, mean = scores.reconstructions["real"], scores.reconstructions["mean"]
    assert real.psnr == float("inf")
    # Roots of rounding errors of zero eigenvalues.
    assert real.rfd == pytest.approx(0, abs=1e-5)
    assert real.ssim == pytest.approx(1, abs=1e-9)
    assert real.accuracy == judges.judge_accuracy == scores.judge_accuracy
    assert mean.psnr < 15
    assert mean.accuracy < 0.5
    assert mean.rfd > 100 * real.rfd
    assert mean.frechet > 3 * real.frechet > 0
    assert isinstance(scores.tokens, TokenizerReport)
    assert scores.tokens.beta == 0.5
    assert scores.tokens.num_examples == scores.num_images == 539


def test_scores_do_not_depend_on_the_batch_and_can_stop_early(judges):
    tokenizer = tiny_image_tokenizer()
    first, second = (score_tokenizer(tokenizer, judges, num_images=120, batch_size=size) for size in (120, 50))
    assert first.num_images == 120
    assert first.tokens is None, "beta is not known"
    for name, scores in first.reconstructions.items():
        # Another order of float32 sums in the tokenizer.
        for field, value in asdict(scores).items():
            assert getattr(second.reconstructions[name], field) == pytest.approx(value, rel=1e-4, abs=1e-4)


def test_codes_get_one_row_and_the_use_of_the_codebook(judges):
    vit = ViTConfig(hidden_size=32, num_layers=1, num_heads=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = VQImageTokenizer(
            VQImageTokenizerConfig(
                image_size=8,
                num_channels=1,
                patch_size=4,
                encoder=vit,
                decoder=vit,
                quantizer=QuantizerConfig(num_codes=16, code_dim=4),
            )
        )
        tokenizer.quantize(judges.test.images[:64], seed=0)  # places the codes
    scores = score_tokenizer(tokenizer.eval(), judges, beta=0.25, num_images=100)
    assert scores.reconstructions.keys() == {"codes", "real"}
    assert isinstance(scores.tokens, CodeReport)
    assert 1 <= scores.tokens.num_used_codes <= 16
    assert scores.tokens.bits_per_example == 4 * 4, "four codes of four bits"


def test_json_is_plain_and_the_text_shows_both_tables(judges):
    scores = score_tokenizer(tiny_image_tokenizer(), judges, beta=0.5, num_images=60)
    content = json.loads(json.dumps(scores.as_json(), allow_nan=False))
    assert content["reconstructions"]["real"]["psnr"] is None
    assert content["tokens"]["bottleneck"] == "sigma_vae"
    text = scores.as_markdown()
    assert "| decoded from a sample | " in text
    assert "| the pictures themselves | inf | 1.0000 |" in text
    assert "std(mu)" in text
