"""Degradations: each does what its name says, to each clip its own, the same for the same seed."""

import pytest
import torch

from latentlm.evaluation.speech.degradations import DEGRADATIONS, change_speed, degrade_randomly
from latentlm.evaluation.speech.recordings import Recordings

RATE = 8000


def clips(count: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(RATE) / RATE
    pitch = 100 + 50 * torch.rand(count, 1, generator=generator)
    voiced = sum(torch.sin(2 * torch.pi * k * pitch * time) / k for k in range(1, 20))
    assert isinstance(voiced, torch.Tensor)
    return 0.2 * voiced * torch.sin(torch.pi * 3 * time).square()


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", list(DEGRADATIONS))
def test_degraded_clips_differ_but_are_still_recognisably_the_clips(name):
    clean = clips()
    worse = DEGRADATIONS[name](clean, RATE, generator())
    assert worse.shape == clean.shape
    assert worse.isfinite().all()
    assert torch.equal(worse, DEGRADATIONS[name](clean, RATE, generator()))
    assert not torch.equal(worse, DEGRADATIONS[name](clean, RATE, generator(2)))
    # Envelopes of 50 ms follow the clips: what is said is still there. White noise would have none.
    envelopes = [x.unfold(1, 400, 400).square().mean(dim=2).sqrt().flatten() for x in (clean, worse)]
    correlation = torch.corrcoef(torch.stack(envelopes))[0, 1]
    assert correlation > 0.5
    assert (worse - clean).square().mean() > 1e-6


@pytest.mark.parametrize("name", list(DEGRADATIONS))
@pytest.mark.parametrize("num_samples", [400, 1003])
def test_short_and_silent_clips_stay_finite(name, num_samples):
    worse = DEGRADATIONS[name](torch.zeros(2, num_samples), RATE, generator())
    assert worse.shape == (2, num_samples)
    assert worse.isfinite().all()


def test_a_limited_band_holds_nothing_outside():
    noise = torch.randn(4, RATE, generator=generator())
    spectrum = torch.fft.rfft(DEGRADATIONS["band"](noise, RATE, generator())).abs()  # 1 Hz per bin
    # float32 rounding of two transforms of 8,000 samples.
    assert spectrum[:, :50].max() < 1e-2
    assert spectrum[:, 500:1500].mean() > 10


def test_few_bits_leave_few_levels():
    worse = DEGRADATIONS["few bits"](clips(), RATE, generator())
    assert max(len(clip.unique()) for clip in worse) <= 2**6 + 1


def test_a_share_of_the_clips_stays_clean():
    many = clips(2)[:1].expand(400, -1)[:, :800]
    same = (degrade_randomly(many, RATE, generator(), clean_ratio=0.3) == many).all(dim=1).float().mean()
    # Binomial: three standard errors are 0.07.
    assert same == pytest.approx(0.3, abs=0.07)


def test_speed_changes_length_within_its_bound():
    lengths = [len(change_speed(torch.ones(1000), 0.1, generator(seed))) for seed in range(50)]
    assert min(lengths) >= 900
    assert max(lengths) <= 1100
    assert max(lengths) - min(lengths) > 100


def test_degraded_recordings_keep_their_texts():
    clean = clips(2)
    recordings = Recordings(waveforms=list(clean), texts=["one", "two"], speakers=["a", "b"], sample_rate=RATE)
    worse = recordings.degraded(DEGRADATIONS["noise"], seed=3)
    assert worse.texts == recordings.texts
    assert worse.digest() != recordings.digest()
    assert worse.digest() == recordings.degraded(DEGRADATIONS["noise"], seed=3).digest()
