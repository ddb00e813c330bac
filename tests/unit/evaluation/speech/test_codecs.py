"""Codecs behind one interface: lengths and rates come back, quantizers count, and foreign ones need their folders."""

from pathlib import Path

import pytest
import torch

from latentlm.evaluation.speech.codecs import (
    Codec,
    CodeCodec,
    CodecRate,
    LatentCodec,
    TransformersCodec,
    open_codec,
    score_codec,
)
from latentlm.evaluation.speech.reconstruction import MelDistance
from latentlm.tokenizers.quantizer import QuantizerConfig
from latentlm.tokenizers.residual_quantizer import ResidualQuantizerConfig
from latentlm.tokenizers.speech import SpeechCodec, SpeechCodecConfig, SpeechTokenizer, SpeechTokenizerConfig

pytest.importorskip("soxr")

RATE = 8000
SHAPE = {"sample_rate": RATE, "channels": (4, 8), "depths": (1, 1), "strides": (8,)}


def clips(count: int = 2, num_samples: int = 1003, *, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(count, num_samples, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def ours() -> dict[str, Codec]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = SpeechTokenizer(SpeechTokenizerConfig(latent_dim=6, **SHAPE)).eval()
        quantizer = QuantizerConfig(num_codes=16, code_dim=4, normalize=False)
        coded = SpeechCodec(
            SpeechCodecConfig(quantizer=ResidualQuantizerConfig(num_quantizers=3, quantizer=quantizer), **SHAPE)
        ).eval()
    tokenizer.measure_statistics([(clips(), torch.arange(2))])
    return {"latents": LatentCodec(tokenizer, bits_per_frame=30.0), "codes": CodeCodec(coded)}


@pytest.mark.parametrize("name", ["latents", "codes"])
@pytest.mark.parametrize(("sample_rate", "num_samples"), [(8000, 1000), (8000, 1003), (16000, 999), (8000, 5)])
def test_sound_comes_back_at_its_own_rate_and_length(ours, name, sample_rate, num_samples):
    codec = ours[name]
    assert isinstance(codec, Codec)
    copies = codec.reconstruct(clips(2, num_samples), sample_rate)
    assert copies.shape == (2, num_samples)
    assert copies.abs().max() <= 1


def test_rates_are_those_of_the_papers_table():
    # Table 5: 32 numbers at 7.5 Hz are 3200 samples a token; Encodec's 8 codes at 75 Hz are 40.
    latents = CodecRate(sample_rate=24000, frame_rate=7.5, tokens_per_frame=1, floats_per_frame=64)
    codes = CodecRate(sample_rate=24000, frame_rate=75.0, tokens_per_frame=8, bits_per_frame=80.0)
    assert (latents.compression_ratio, codes.compression_ratio) == (3200, 40)
    assert (latents.floats_per_second, latents.bits_per_second) == (480, None)
    assert (codes.codes_per_second, codes.bits_per_second) == (600, 6000)
    assert codes.as_json()["compression_ratio"] == 40


def test_our_codecs_state_their_rates(ours):
    latents, codes = ours["latents"].rate(), ours["codes"].rate(2)
    assert (latents.frame_rate, latents.floats_per_second, latents.bits_per_second) == (1000, 6000, 30_000)
    assert (codes.codes_per_second, codes.bits_per_second) == (2000, 8000)  # two codes of four bits


def test_more_quantizers_than_there_are_are_refused(ours):
    for asked in (0, 4):
        with pytest.raises(ValueError, match="1 to 3"):
            ours["codes"].reconstruct(clips(), RATE, asked)
        with pytest.raises(ValueError, match="1 to 3"):
            ours["codes"].rate(asked)
    with pytest.raises(ValueError, match="1 to 1"):
        ours["latents"].reconstruct(clips(), RATE, 2)


def test_the_noise_of_a_clip_does_not_hang_on_the_other_clips(ours):
    batch = clips(3)
    together = ours["latents"].reconstruct(batch, RATE)
    alone = torch.cat([ours["latents"].reconstruct(clip[None], RATE) for clip in batch])
    # Convolutions of another batch size round otherwise.
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_a_codec_is_scored_in_one_call(ours):
    rate, scores = score_codec(ours["codes"], list(clips(3, 4000)), RATE, num_quantizers=1, scorers=[MelDistance()])
    assert rate.tokens_per_frame == 1
    assert scores.measures["mel distance ↓"].num_scored == 3


# -- transformers ------------------------------------------------------------------------------------------------------


def save_tiny(kind: str, folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "encodec":
            config = transformers.EncodecConfig(
                sampling_rate=8000, target_bandwidths=[1.5, 3.0], hidden_size=8, num_filters=4,
                upsampling_ratios=[5, 4, 2], num_lstm_layers=1, codebook_size=8, codebook_dim=8,
            )  # fmt: skip
            model = transformers.EncodecModel(config)
        elif kind == "dac":
            config = transformers.DacConfig(
                sampling_rate=8000, encoder_hidden_size=4, decoder_hidden_size=32, downsampling_ratios=[2, 4, 5],
                n_codebooks=3, codebook_size=16, codebook_dim=4,
            )  # fmt: skip
            model = transformers.DacModel(config)
        else:
            config = transformers.MimiConfig(
                sampling_rate=8000, hidden_size=16, num_filters=4, upsampling_ratios=[5, 4], num_quantizers=4,
                codebook_size=16, codebook_dim=8, vector_quantization_hidden_dimension=8, upsample_groups=16,
                num_hidden_layers=1, intermediate_size=16, num_attention_heads=2, num_key_value_heads=2, head_dim=8,
            )  # fmt: skip
            model = transformers.MimiModel(config)
        for name, codes in model.named_buffers():
            if name.endswith(("embed", "embed_sum")):  # codebooks, zero until they are trained
                codes.normal_()
        model.save_pretrained(folder)


@pytest.mark.parametrize(("kind", "most"), [("encodec", 5), ("dac", 3), ("mimi", 4)])
def test_codecs_of_transformers_do_what_ours_do(kind, most, tmp_path: Path):
    folder = tmp_path / f"tiny-{kind}"
    save_tiny(kind, folder)
    codec = TransformersCodec(folder)
    assert isinstance(codec, Codec)
    assert codec.label == f"tiny-{kind}"
    assert codec.rate().tokens_per_frame == most
    assert codec.rate().frame_rate == 200.0  # hops of 40 samples; Mimi's 20, halved by its last layer
    assert codec.rate(1).bits_per_second == codec.rate().bits_per_second / most
    for sample_rate, num_samples in ((8000, 1003), (16000, 640)):
        waveforms = clips(2, num_samples)
        copies = codec.reconstruct(waveforms, sample_rate)
        assert copies.shape == waveforms.shape
        assert copies.abs().max() <= 1
        fewer = codec.reconstruct(waveforms, sample_rate, 1)
        assert not torch.equal(fewer, copies)
    with pytest.raises(ValueError, match=f"1 to {most}"):
        codec.reconstruct(clips(), RATE, most + 1)


def test_unknown_folders_are_refused_with_what_to_do(tmp_path: Path):
    with pytest.raises(ValueError, match=r"config\.json.*WavTokenizer from its checkpoint, a file"):
        open_codec(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="'bert'"):
        open_codec(tmp_path)
