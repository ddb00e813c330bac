"""The discrete speech codec: nested codes, streams, gradients, storage."""

from pathlib import Path

import pytest
import torch
from tiny_speech import DESIGNS, HOP_LENGTH, sound, tiny_speech_codec, tiny_speech_tokenizer

from latentlm.tokenizers.speech import SpeechCodec

# Convolutions of another length add in another order.
STREAM_TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}

each_design = pytest.mark.parametrize("design", DESIGNS)


@each_design
def test_any_clip_becomes_codes_and_comes_back_at_its_own_length(design: str) -> None:
    codec = tiny_speech_codec(design).requires_grad_(False)
    codes = codec.encode(sound(2, 100))
    assert codes.shape == (2, codec.num_frames(100), codec.num_quantizers) == (2, 4, 3)
    assert 0 <= codes.min() < codes.max() < codec.num_codes == 16
    decoded = codec.decode(codes, num_samples=100)
    assert decoded.shape == (2, 100)
    assert decoded.abs().max() <= 1


def test_codes_are_nested_and_any_number_of_them_decodes() -> None:
    codec = tiny_speech_codec().requires_grad_(False)
    waveforms = sound(2, 200)
    codes = codec.encode(waveforms)
    decoded = []
    for num_quantizers in (1, 2, 3):
        assert torch.equal(codec.encode(waveforms, num_quantizers=num_quantizers), codes[..., :num_quantizers])
        decoded.append(codec.decode(codes[..., :num_quantizers]))
    assert not torch.equal(decoded[0], decoded[1])
    assert not torch.equal(decoded[1], decoded[2])


@each_design
def test_streams_have_the_codes_and_the_sound_of_whole_clips(design: str) -> None:
    codec = tiny_speech_codec(design).requires_grad_(False)
    waveforms = sound(2, 8 * HOP_LENGTH - 5)
    codes = codec.encode(waveforms)
    state, streamed = codec.encoder_state(2), []
    for chunk in waveforms.split(47, dim=1):
        some, state = codec.encode_step(chunk, state)
        streamed.append(some)
    last, _ = codec.encode_step(waveforms[:, :0], state, final=True)
    assert torch.equal(torch.cat([*streamed, last], dim=1), codes)
    state, streamed = codec.decoder_state(2), []
    for chunk in codes.split([1, 3, 0, 4], dim=1):
        sounds, state = codec.decode_step(chunk, state)
        streamed.append(sounds)
    torch.testing.assert_close(torch.cat(streamed, dim=1), codec.decode(codes), **STREAM_TOLERANCE)


def test_training_moves_the_codebooks_and_gradients_reach_every_matrix() -> None:
    codec = tiny_speech_codec(filled=False)
    before = codec.encode(sound(4, 240)).clone()
    quantized = codec.quantize(sound(4, 240), seed=0, keys=torch.arange(4))
    loss = (codec.reconstruct(quantized.vectors) - sound(4, 240)).square().mean() + quantized.commitment.mean()
    loss.backward()
    for name, parameter in codec.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert not torch.equal(codec.encode(sound(4, 240)), before)


def test_decoding_codes_is_what_training_reconstructs() -> None:
    codec = tiny_speech_codec().requires_grad_(False)
    waveforms = sound(2, 240)
    quantized = codec.quantize(waveforms, seed=0, keys=torch.arange(2))
    assert torch.equal(quantized.codes, codec.encode(waveforms))
    reconstructions = codec.reconstruct(quantized.vectors).clamp(-1, 1)
    # Straight through adds and takes away the vector, which rounds in float32.
    torch.testing.assert_close(codec.decode(quantized.codes), reconstructions, atol=1e-4, rtol=0)


def test_what_does_not_fit_is_refused() -> None:
    codec = tiny_speech_codec()
    with pytest.raises(ValueError, match="4 codes per vector"):
        codec.encode(sound(1, 30), num_quantizers=4)
    with pytest.raises(ValueError, match="4 codes per vector"):
        codec.decode(torch.zeros(1, 2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="another tokenizer"):
        codec.decode(torch.full((1, 2, 3), 16))
    with pytest.raises(ValueError, match="2 latents of 30 samples"):
        codec.decode(torch.zeros(1, 2, 3, dtype=torch.int64), num_samples=61)


@each_design
def test_saving_and_loading_keeps_fingerprint_codes_and_sound(design: str, tmp_path: Path) -> None:
    codec = tiny_speech_codec(design).requires_grad_(False)
    codec.save_pretrained(tmp_path / "it")
    loaded = SpeechCodec.from_pretrained(tmp_path / "it").requires_grad_(False)
    assert loaded.config == codec.config
    assert loaded.fingerprint() == codec.fingerprint()
    codes = codec.encode(sound(2, 100))
    assert torch.equal(loaded.encode(sound(2, 100)), codes)
    assert torch.equal(loaded.decode(codes), codec.decode(codes))


@each_design
def test_encoder_and_decoder_are_those_of_the_sigma_vae(design: str) -> None:
    shapes = [
        {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        for model in (tiny_speech_tokenizer(design, latent_dim=4, measured=False), tiny_speech_codec(design))
    ]
    assert shapes[0] == shapes[1]
