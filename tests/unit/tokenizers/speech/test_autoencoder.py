"""Laws of encoder and decoder in both designs: streams equal whole clips, causality, lengths, the paper's sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_speech import DESIGNS, HOP_LENGTH, sound, split_at, tensors_of, tiny_speech_tokenizer
from torch import Tensor

from latentlm.tokenizers.speech import ConvNeXtConfig, SpectrumConfig, SpeechTokenizer, SpeechTokenizerConfig

# Matrix products and convolutions of another length add in another order.
STREAM_TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}

TOKENIZERS = {design: tiny_speech_tokenizer(design).requires_grad_(False) for design in DESIGNS}

each_design = pytest.mark.parametrize("design", DESIGNS)


def streamed_means(tokenizer: SpeechTokenizer, chunks: list[Tensor]) -> Tensor:
    """Means of a stream that ends with the last chunk."""
    state, means = tokenizer.encoder_state(len(chunks[0])), []
    for number, chunk in enumerate(chunks, start=1):
        posterior, state = tokenizer.posterior_step(chunk, state, final=number == len(chunks))
        means.append(posterior.mean)
    return torch.cat(means, dim=1)


def streamed_sound(tokenizer: SpeechTokenizer, chunks: list[Tensor]) -> Tensor:
    state, waveforms = tokenizer.decoder_state(len(chunks[0])), []
    for chunk in chunks:
        waveform, state = tokenizer.decode_step(chunk, state)
        waveforms.append(waveform)
    return torch.cat(waveforms, dim=1)


@each_design
@settings(max_examples=100, deadline=None)
@given(
    num_samples=st.integers(0, 8 * HOP_LENGTH),
    sample_sizes=st.lists(st.integers(0, 3 * HOP_LENGTH), max_size=6),
    latent_sizes=st.lists(st.integers(0, 3), max_size=5),
)
def test_any_chunks_of_any_clip_give_what_the_whole_gives(
    design: str, num_samples: int, sample_sizes: list[int], latent_sizes: list[int]
) -> None:
    tokenizer = TOKENIZERS[design]
    waveforms = sound(2, num_samples)
    mean = tokenizer.posterior(waveforms).mean
    assert mean.shape == (2, tokenizer.num_frames(num_samples), 3)
    torch.testing.assert_close(streamed_means(tokenizer, split_at(waveforms, sample_sizes)), mean, **STREAM_TOLERANCE)
    whole = tokenizer.decode(mean)
    torch.testing.assert_close(streamed_sound(tokenizer, split_at(mean, latent_sizes)), whole, **STREAM_TOLERANCE)
    assert torch.equal(tokenizer.decode(mean, num_samples=num_samples), whole[:, :num_samples])


@each_design
def test_single_samples_and_single_latents_are_chunks_too(design: str) -> None:
    tokenizer = TOKENIZERS[design]
    waveforms = sound(1, 2 * HOP_LENGTH + 7)
    mean = tokenizer.posterior(waveforms).mean
    assert mean.shape[1] == 3
    torch.testing.assert_close(streamed_means(tokenizer, list(waveforms.split(1, dim=1))), mean, **STREAM_TOLERANCE)
    one_by_one = streamed_sound(tokenizer, list(mean.split(1, dim=1)))
    torch.testing.assert_close(one_by_one, tokenizer.decode(mean), **STREAM_TOLERANCE)


@each_design
def test_a_latent_comes_out_with_its_last_sample(design: str) -> None:
    tokenizer = TOKENIZERS[design]
    state, counts = tokenizer.encoder_state(1), []
    for sample in sound(1, 2 * HOP_LENGTH).split(1, dim=1):
        posterior, state = tokenizer.posterior_step(sample, state)
        counts.append(posterior.mean.shape[1])
    assert counts == ([0] * (HOP_LENGTH - 1) + [1]) * 2


@each_design
def test_a_latent_hears_its_own_samples_and_none_after(design: str) -> None:
    tokenizer = TOKENIZERS[design]
    waveforms = sound(1, 6 * HOP_LENGTH)
    mean = tokenizer.posterior(waveforms).mean
    for first in (3 * HOP_LENGTH, 4 * HOP_LENGTH - 1):  # the first and the last sample of latent 3
        changed = waveforms.clone()
        changed[:, first:] = torch.nan  # whatever looks at them turns to NaN
        heard = tokenizer.posterior(changed).mean
        assert torch.equal(heard[:, :3], mean[:, :3])
        assert heard[:, 3].isnan().all()


@each_design
def test_sound_follows_from_its_own_latent_and_none_after(design: str) -> None:
    tokenizer = TOKENIZERS[design]
    latents = torch.randn(1, 6, 3, generator=torch.Generator().manual_seed(2))
    waveforms = tokenizer.decode(latents)
    changed = latents.clone()
    changed[:, 3:] = torch.nan
    heard = tokenizer.decode(changed)
    assert torch.equal(heard[:, : 3 * HOP_LENGTH], waveforms[:, : 3 * HOP_LENGTH])
    assert heard[:, 3 * HOP_LENGTH].isnan().all()


@each_design
def test_a_streams_state_does_not_grow(design: str) -> None:
    tokenizer = TOKENIZERS[design]
    state, sizes = tokenizer.encoder_state(1), []
    for number in range(60):
        _, state = tokenizer.posterior_step(sound(1, 37, seed=number), state)
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in tensors_of(state)))
    # 37 and 30 share no divisor: after 30 chunks every rest of a latent has occurred.
    assert max(sizes[30:]) == max(sizes[:30])
    state = tokenizer.decoder_state(1)
    sizes = [[tensor.shape for tensor in tensors_of(state)]]
    for _ in range(5):
        _, state = tokenizer.decode_step(torch.zeros(1, 4, 3), state)
        sizes.append([tensor.shape for tensor in tensors_of(state)])
    assert all(shapes == sizes[0] for shapes in sizes)


@each_design
def test_a_batch_of_two_is_two_batches_of_one(design: str) -> None:
    tokenizer = TOKENIZERS[design]
    waveforms = sound(2, 100)
    mean = tokenizer.posterior(waveforms).mean
    decoded = tokenizer.decode(mean)
    for row in range(2):
        alone = tokenizer.posterior(waveforms[row : row + 1]).mean
        torch.testing.assert_close(alone, mean[row : row + 1], **STREAM_TOLERANCE)
        torch.testing.assert_close(tokenizer.decode(alone), decoded[row : row + 1], **STREAM_TOLERANCE)


@each_design
def test_streams_may_begin_at_different_times_in_one_batch_of_decoders(design: str) -> None:
    """Rows of a decoder's state are streams: one that is three latents old and a new one step together."""
    tokenizer = TOKENIZERS[design]
    latents = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(2))
    _, old = tokenizer.decode_step(latents[:1, :3], tokenizer.decoder_state(1))
    both = _join(old, tokenizer.decoder_state(1))
    together, _ = tokenizer.decode_step(torch.cat([latents[:1, 3:], latents[1:, :4]]), both)
    whole = tokenizer.decode(latents)
    torch.testing.assert_close(together[0], whole[0, 3 * HOP_LENGTH :], **STREAM_TOLERANCE)
    torch.testing.assert_close(together[1], whole[1, : 4 * HOP_LENGTH], **STREAM_TOLERANCE)


def _join(one, other):
    if isinstance(one, Tensor):
        return torch.cat([one, other])
    return tuple(_join(a, b) for a, b in zip(one, other, strict=True))


@each_design
def test_activation_checkpointing_changes_no_gradient(design: str) -> None:
    tokenizer = tiny_speech_tokenizer(design)
    gradients = []
    for checkpointing in (False, True):
        tokenizer.encoder.activation_checkpointing = tokenizer.decoder.activation_checkpointing = checkpointing
        tokenizer.zero_grad()
        tokenizer.reconstruct(tokenizer.posterior(sound(2, 90)).mean).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in tokenizer.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name
        assert torch.equal(gradient, gradients[1][name])


@each_design
def test_layer_norm_is_as_exact_a_stream(design: str) -> None:
    tokenizer = tiny_speech_tokenizer(design, block=ConvNeXtConfig(norm="layer_norm", kernel_size=3, expansion=2))
    waveforms = sound(1, 100)
    with torch.no_grad():
        mean = tokenizer.posterior(waveforms).mean
        torch.testing.assert_close(
            streamed_means(tokenizer, list(waveforms.split(13, dim=1))), mean, **STREAM_TOLERANCE
        )


@pytest.mark.parametrize(
    ("strides", "latent_dim", "frame_rate"),
    [
        ((2, 4, 4, 4, 5), 16, 37.5),
        ((2, 4, 5, 5, 8), 32, 15.0),
        ((4, 4, 5, 5, 8), 64, 7.5),
        ((4, 5, 5, 8, 8), 128, 3.75),
    ],
)
def test_the_papers_tokenizers_have_120_million_parameters_a_side(
    strides: tuple[int, ...], latent_dim: int, frame_rate: float
) -> None:
    config = SpeechTokenizerConfig(
        channels=(32, 64, 128, 256, 512, 1024), depths=(3, 3, 3, 3, 3, 12), strides=strides, latent_dim=latent_dim
    )
    assert config.frame_rate == frame_rate
    with torch.device("meta"):
        tokenizer = SpeechTokenizer(config)
    for half in (tokenizer.encoder, tokenizer.decoder):
        # The strides differ a little in the size of their convolutions; the paper says "around".
        assert sum(parameter.numel() for parameter in half.parameters()) == pytest.approx(120e6, rel=0.04)


def test_stages_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="2 channels, 3 depths and 2 strides"):
        SpeechTokenizerConfig(channels=(4, 8), depths=(1, 1, 1), strides=(2, 2))
    with pytest.raises(ValueError, match="at least 1"):
        SpeechTokenizerConfig(channels=(4, 8), depths=(1, 1), strides=(0,))
    with pytest.raises(ValueError, match="between 1 and fft_size 16"):
        SpectrumConfig(fft_size=16, hop_length=17)
    with pytest.raises(ValueError, match="even"):
        SpectrumConfig(fft_size=15, hop_length=5)
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        SpectrumConfig(fft_size=16, hop_length=5, power=0.0)
    with pytest.raises(ValueError, match="kernel_size and expansion"):
        ConvNeXtConfig(kernel_size=0)
