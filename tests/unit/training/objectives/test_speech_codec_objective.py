"""The speech codec as the trainer sees it: losses, moving codebooks, rates in the report."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from tiny_tones import TONE_CODEC, write_tones

from latentlm.data.audio import AudioDataConfig
from latentlm.tokenizers.speech import SpeechCodec
from latentlm.training.losses.spectral import MelLossConfig
from latentlm.training.objectives.speech_codec import SpeechCodecObjective, SpeechCodecRecipe, build_speech_codec
from latentlm.training.objectives.speech_reconstruction import SpeechLossConfig
from latentlm.training.optim import OptimConfig
from latentlm.training.trainer import Trainer, TrainerConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> AudioDataConfig:
    return write_tones(tmp_path_factory.mktemp("tones"))


def make_recipe(data: AudioDataConfig) -> SpeechCodecRecipe:
    return SpeechCodecRecipe(
        kind="speech_codec",
        data=data,
        tokenizer=TONE_CODEC,
        losses=SpeechLossConfig(beta=0.25, mel=MelLossConfig(window_lengths=(32, 128), num_mels=(5, 20))),
        optim=OptimConfig(lr=3e-3, num_warmup_steps=0),
        trainer=TrainerConfig(num_steps=6, batch_size=4, ema_half_life_ratio=0.5, device="cpu", tensorboard=False),
    )


def make_objective(data: AudioDataConfig) -> SpeechCodecObjective:
    return build_speech_codec(make_recipe(data))[0]


def test_total_is_reconstruction_and_commitment(data: AudioDataConfig) -> None:
    objective = make_objective(data)
    waveforms, keys = next(iter(objective.clips.training()))
    batch = objective.prepare({"audio": waveforms, "key": keys}, step=0, seed=0)
    totals = objective.counts(batch)
    objective.losses(batch, step=0, totals=totals)  # fills the codebooks
    objective.eval()
    losses = objective.losses(batch, step=0, totals=totals)["tokenizer"]
    quantized = objective.tokenizer.quantize(waveforms, seed=0, keys=keys)
    assert losses["regularizer"].item() == pytest.approx(quantized.commitment.mean().item(), rel=1e-5)
    expected = 15 * losses["mel"] + 0.25 * losses["regularizer"]
    assert losses["total"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_no_optimizer_owns_the_codebooks(data: AudioDataConfig) -> None:
    objective = make_objective(data)
    groups = objective.optimizer_groups()["tokenizer"].groups
    owned = {parameter for group in groups for parameter in group["params"]}
    assert owned == set(objective.tokenizer.parameters())
    assert not any("quantizer" in name for name, _ in objective.named_parameters())


def test_training_leaves_a_codec_with_its_report(data: AudioDataConfig, tmp_path: Path) -> None:
    objective, loader, recipe = build_speech_codec(make_recipe(data))
    Trainer(objective, loader, recipe.trainer, tmp_path, recipe=recipe, evaluations=objective.evaluations()).fit()
    raw = SpeechCodec.from_pretrained(tmp_path / "model_raw")
    assert raw.fingerprint() == objective.tokenizer.fingerprint()
    report = json.loads((tmp_path / "model" / "tokenizer_report.json").read_text())
    assert (report["num_quantizers"], report["num_codes"], report["num_examples"]) == (3, 16, 5)
    assert report["bits_per_second"] == 50 * 3 * 4
    assert 0 < report["entropy_bits_per_second"] < report["bits_per_second"]
    assert "150 codes and 600 bits per second" in (tmp_path / "model" / "tokenizer_report.md").read_text()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["evaluation"].keys() == {
        f"{measure}_{name}" for measure in ("mel_distance", "si_sdr") for name in ("all_codes", "first_code")
    }
    assert lines[-2]["tokenizer/codebook_perplexity"] > 1


def test_sampling_and_saving_leave_the_codebooks_as_they_are(data: AudioDataConfig, tmp_path: Path) -> None:
    objective = make_objective(data)
    before = objective.tokenizer.fingerprint()
    objective.sample_grid(seed=0)
    objective.save_pretrained(tmp_path / "model")
    assert objective.tokenizer.fingerprint() == before


def test_tones_are_learned_through_the_codes(data: AudioDataConfig) -> None:
    objective, make_loader, _ = build_speech_codec(make_recipe(data))
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    first = last = None
    for step, raw_batch in enumerate(itertools.islice(make_loader(0), 60)):
        batch = objective.prepare(raw_batch, step=step, seed=0)
        last = objective.losses(batch, step=step, totals=objective.counts(batch))["tokenizer"]
        first = first or {name: value.item() for name, value in last.items()}
        optimizer.zero_grad()
        last["total"].backward()
        optimizer.step()
    assert first is not None
    assert last is not None
    assert last["mel"].item() < 0.7 * first["mel"]
