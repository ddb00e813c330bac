"""Waveform discriminators and their losses: seams of gradients, independence of clips, values by hand."""

import math

import pytest
import torch
from torch import Tensor

from latentlm.training.losses.waveform_adversarial import (
    Judgement,
    PeriodDiscriminatorConfig,
    STFTDiscriminatorConfig,
    WaveformAdversarialConfig,
    WaveformDiscriminator,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
)

SMALL = WaveformAdversarialConfig(
    period=PeriodDiscriminatorConfig(periods=(2, 3), channels=(4, 8)),
    stft=STFTDiscriminatorConfig(window_lengths=(128, 64), band_edges=(0.0, 0.3, 1.0), num_channels=4),
)


def make_discriminator(config: WaveformAdversarialConfig = SMALL) -> WaveformDiscriminator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return WaveformDiscriminator(config)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize("num_samples", [1, 50, 400, 401])
def test_there_are_verdicts_on_clips_of_any_length(num_samples: int) -> None:
    judgements = make_discriminator()(noise(2, num_samples))
    assert len(judgements) == 4
    for judgement in judgements:
        assert judgement.verdicts.shape[:2] == (2, 1)
        assert judgement.verdicts.isfinite().all()
    assert [len(judgement.features) for judgement in judgements] == [2, 2, 10, 10]


def test_the_default_sizes_are_hifi_gans_and_dacs() -> None:
    config = WaveformAdversarialConfig()
    with torch.device("meta"):
        only_period = WaveformDiscriminator(WaveformAdversarialConfig(stft=None))
        both = WaveformDiscriminator(config)
    # HiFi-GAN's period discriminators have 8.2 million parameters each; weight norm's gains and biases included.
    assert sum(p.numel() for p in only_period.parameters()) == pytest.approx(5 * 8.2e6, rel=0.01)
    assert len(both.parts) == 8
    assert config.weight, config.feature_weight == (1.0, 2.0)


def test_a_period_discriminator_sees_every_nth_sample_alone() -> None:
    config = WaveformAdversarialConfig(period=PeriodDiscriminatorConfig(periods=(3,), channels=(4, 4)), stft=None)
    part = make_discriminator(config).parts[0]
    waveform = noise(1, 60).requires_grad_()
    verdicts = part(waveform).verdicts  # (1, 1, rows, 3)
    verdicts[..., 1].sum().backward()
    assert waveform.grad is not None
    touched = waveform.grad[0].nonzero().flatten() % 3
    assert set(touched.tolist()) == {1}


def test_the_stft_discriminator_hears_phase() -> None:
    config = WaveformAdversarialConfig(period=None, stft=SMALL.stft)
    time = torch.arange(1024) / 1024
    sine, cosine = torch.sin(2 * math.pi * 100 * time), torch.cos(2 * math.pi * 100 * time)
    verdicts = make_discriminator(config)(torch.stack([sine, cosine]))[0].verdicts
    middle = verdicts[..., 8:16, :]
    assert (middle[0] - middle[1]).abs().max() > 1e-3


def test_verdicts_of_a_clip_do_not_depend_on_the_batch_or_its_level() -> None:
    discriminator = make_discriminator()
    waveforms = noise(3, 400)
    with torch.no_grad():
        together, alone = discriminator(waveforms), discriminator(waveforms[:1])
        louder = discriminator(waveforms[:1] * 5 + 0.1)
    for one, other, third in zip(together, alone, louder, strict=True):
        # Float32; convolutions may sum in another order for another batch size.
        assert torch.allclose(one.verdicts[:1], other.verdicts, atol=1e-5)
        assert torch.allclose(third.verdicts, other.verdicts, atol=1e-4)


def test_silence_is_not_raised_to_noise() -> None:
    waveform = torch.zeros(1, 400, requires_grad=True)
    judgements = make_discriminator().judge(waveform + 1e-7 * noise(1, 400))
    generator_loss(judgements, "least_squares").sum().backward()
    assert waveform.grad is not None
    assert waveform.grad.isfinite().all()
    assert waveform.grad.norm() < 1e4


def test_judging_moves_the_waveform_and_not_the_judge() -> None:
    discriminator = make_discriminator()
    waveforms = noise(2, 400).requires_grad_()
    judgements = discriminator.judge(waveforms)
    for one, other in zip(judgements, discriminator(waveforms), strict=True):
        assert torch.equal(one.verdicts, other.verdicts)
    real = discriminator(noise(2, 400, seed=1))
    (generator_loss(judgements, "hinge") + feature_matching_loss(real, judgements)).sum().backward()
    assert waveforms.grad is not None
    assert waveforms.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in discriminator.parameters())


def test_weights_have_a_norm_of_their_own() -> None:
    discriminator = make_discriminator()
    names = {name.rsplit(".", 1)[1] for name, _ in discriminator.named_parameters()}
    assert names == {"original0", "original1", "bias"}
    before = discriminator(noise(1, 400))[0].verdicts
    with torch.no_grad():
        for name, parameter in discriminator.named_parameters():
            if name.endswith("original1"):
                parameter.mul_(3)
    assert torch.allclose(discriminator(noise(1, 400))[0].verdicts, before, atol=1e-6)  # only the direction counts


def judgement(*verdicts: float) -> Judgement:
    return Judgement(torch.tensor([[list(verdicts)]]), [torch.tensor([[verdicts[0], 0.0]])])


def test_losses_by_hand() -> None:
    real, fake = [judgement(2.0, 0.5), judgement(1.0)], [judgement(-3.0, 0.0), judgement(0.5)]
    # (1 - 2)², (1 - 0.5)²; (-3)², 0²: means 0.625 and 4.5. Second part: 0 and 0.25.
    assert discriminator_loss(real, fake, "least_squares").tolist() == [0.625 + 4.5 + 0.25]
    # (1 + 3)², 1²: mean 8.5; 0.25.
    assert generator_loss(fake, "least_squares").tolist() == [8.75]
    # max(0, 1 - real) = 0, 0.5; max(0, 1 + fake) = 0, 1: 0.25 + 0.5. Second: 0 + 1.5.
    assert discriminator_loss(real, fake, "hinge").tolist() == [2.25]
    assert generator_loss(fake, "hinge").tolist() == [1.5 - 0.5]
    # |2 + 3| and 0: 2.5; |1 - 0.5| and 0: 0.25.
    assert feature_matching_loss(real, fake).tolist() == [2.75]


@pytest.mark.parametrize("loss", ["least_squares", "hinge"])
def test_a_discriminator_learns_to_tell_tones_from_noise(loss) -> None:
    discriminator = make_discriminator()
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=1e-2, betas=(0.8, 0.99))
    phases = torch.rand(8, 1, generator=torch.Generator().manual_seed(2)) * 2 * math.pi
    tones = torch.sin(torch.arange(400) * 0.2 + phases)
    for step in range(20):
        total = discriminator_loss(discriminator(tones), discriminator(noise(8, 400, seed=step)), loss).mean()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    # Undecided verdicts cost 0.5 (least squares) or 2 (hinge) for each of the four parts.
    assert total.item() < (1.0 if loss == "least_squares" else 4.0)


def test_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="must rise"):
        STFTDiscriminatorConfig(band_edges=(0.0, 0.5, 0.5))
    with pytest.raises(ValueError, match="without a bin"):
        STFTDiscriminatorConfig(window_lengths=(8,))
    with pytest.raises(ValueError, match="adversarial: null"):
        WaveformAdversarialConfig(period=None, stft=None)
    with pytest.raises(ValueError, match="positive"):
        PeriodDiscriminatorConfig(periods=())
