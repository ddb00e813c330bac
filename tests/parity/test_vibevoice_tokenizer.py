"""The time-domain speech tokenizer gives what transformers' VibeVoice acoustic tokenizer gives, whole and streamed."""

import re

import pytest
import torch
from transformers import VibeVoiceAcousticTokenizerConfig, VibeVoiceAcousticTokenizerModel

from latentlm.tokenizers.speech.vibevoice_checkpoint import load_vibevoice_tokenizer

HOP = 2 * 5 * 2
# Sums of some hundred products in another order, through a dozen layers.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def theirs() -> VibeVoiceAcousticTokenizerModel:
    config = VibeVoiceAcousticTokenizerConfig(
        hidden_size=6, num_filters=4, downsampling_ratios=[2, 5, 2], depths=[1, 2, 1, 3], layer_scale_init_value=0.5
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VibeVoiceAcousticTokenizerModel(config).eval().requires_grad_(False)
        for parameter in model.parameters():  # biases and scales too, so that each must be in its place
            parameter.copy_(torch.randn(parameter.shape) * 0.2)
    return model


def sound(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_whole_clips_are_encoded_and_decoded_alike(theirs: VibeVoiceAcousticTokenizerModel) -> None:
    ours = load_vibevoice_tokenizer(theirs.state_dict())
    assert ours.config.hop_length == HOP
    waveforms = sound(2, 9 * HOP)
    with torch.no_grad():
        expected = theirs.encode(waveforms[:, None], sample=False).latents
        mean = ours.posterior(waveforms).mean
        # Where something is heard: all-zero tensors would agree too.
        assert 0.1 < expected.std() < 3
        torch.testing.assert_close(mean, expected, **TOLERANCE)
        audio = theirs.decode(expected).audio[:, 0]
        assert 0.1 < audio.std() < 3
        torch.testing.assert_close(ours.reconstruct(expected), audio, **TOLERANCE)


def test_streams_are_encoded_and_decoded_alike(theirs: VibeVoiceAcousticTokenizerModel) -> None:
    ours = load_vibevoice_tokenizer(theirs.state_dict())
    waveforms = sound(2, 9 * HOP)
    with torch.no_grad():
        cache, state = None, ours.encoder_state(2)
        latents = []
        for chunk in waveforms.split([HOP, 3 * HOP, 5 * HOP], dim=1):
            output = theirs.encode(chunk[:, None], padding_cache=cache, use_cache=True, sample=False)
            cache = output.padding_cache
            posterior, state = ours.posterior_step(chunk, state)
            torch.testing.assert_close(posterior.mean, output.latents, **TOLERANCE)
            latents.append(posterior.mean)
        cache, state = None, ours.decoder_state(2)
        for chunk in torch.cat(latents, dim=1).split([1, 1, 4, 3], dim=1):
            output = theirs.decode(chunk, padding_cache=cache, use_cache=True)
            cache = output.padding_cache
            waveform, state = ours.reconstruct_step(chunk, state)
            torch.testing.assert_close(waveform, output.audio[:, 0], **TOLERANCE)


def authors_name(name: str) -> str:
    """transformers' name of a tensor in the authors' spelling, inside a whole model."""
    name = re.sub(r"conv_layers\.(\d+)\.conv\.", lambda m: f"downsample_layers.{int(m[1]) + 1}.0.conv.", name)
    name = re.sub(r"conv_layers\.(\d+)\.convtr\.", lambda m: f"upsample_layers.{int(m[1]) + 1}.0.convtr.", name)
    name = re.sub(r"conv_layers\.(\d+)\.stage\.", lambda m: f"stages.{int(m[1]) + 1}.", name)
    name = name.replace("encoder.stem.conv.", "encoder.downsample_layers.0.0.conv.")
    name = name.replace("decoder.stem.conv.", "decoder.upsample_layers.0.0.conv.").replace("stem.stage.", "stages.0.")
    return "model.acoustic_tokenizer." + name.replace("mixer.conv.", "mixer.conv.conv.conv.").replace(
        "head.conv.", "head.conv.conv."
    )


def test_the_authors_spelling_and_a_whole_model_are_read_too(theirs: VibeVoiceAcousticTokenizerModel) -> None:
    weights = theirs.state_dict()
    whole = {authors_name(name): weight for name, weight in weights.items()}
    whole |= {  # what else lies in a model
        "model.semantic_tokenizer.encoder.head.conv.conv.weight": torch.zeros(3, 3, 7),
        "model.language_model.embed_tokens.weight": torch.zeros(5, 5),
        "model.speech_scaling_factor": torch.tensor(0.2),
        "model.speech_bias_factor": torch.tensor(-0.05),
    }
    ours, renamed = load_vibevoice_tokenizer(weights), load_vibevoice_tokenizer(whole)
    waveforms = sound(1, 4 * HOP)
    with torch.no_grad():
        mean = ours.posterior(waveforms).mean
        assert torch.equal(renamed.posterior(waveforms).mean, mean)
        # Their connector sees (z + bias) · scaling, which is our latents of unit variance.
        torch.testing.assert_close(renamed.encode(waveforms, sample=False), (mean - 0.05) * 0.2)
    with pytest.raises(ValueError, match="statistics"):
        ours.encode(waveforms)


def test_the_noise_is_theirs(theirs: VibeVoiceAcousticTokenizerModel) -> None:
    assert load_vibevoice_tokenizer(theirs.state_dict()).config.bottleneck.sigma_scale == theirs.config.vae_std


def test_weights_without_an_encoder_or_with_a_tensor_too_few_are_refused(
    theirs: VibeVoiceAcousticTokenizerModel,
) -> None:
    weights = theirs.state_dict()
    with pytest.raises(ValueError, match="no encoder of an acoustic tokenizer"):
        load_vibevoice_tokenizer({name: weight for name, weight in weights.items() if name.startswith("decoder")})
    for missing in ("encoder.stem.conv.conv.weight", "decoder.head.conv.bias", "encoder.stem.stage.0.gamma"):
        with pytest.raises(ValueError, match="missing"):
            load_vibevoice_tokenizer({name: weight for name, weight in weights.items() if name != missing})
    with pytest.raises(ValueError, match=r"it has no encoder\.extra"):
        load_vibevoice_tokenizer({**weights, "encoder.extra": torch.zeros(1)})
