"""Our speech metrics against outside authorities: librosa's filters, SI-SDR by hand, libraries on real sound."""

import numpy as np
import pytest
import torch

from latentlm.evaluation.speech.reconstruction import MelDistance, SignalToDistortion
from latentlm.nn.mel import mel_filter_bank

RATE = 24000


def noise(num_samples: int, seed: int) -> torch.Tensor:
    return 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.filterwarnings("ignore:Empty filters")  # librosa's; narrow bands hold no frequency of short windows
@pytest.mark.parametrize("max_frequency", [None, 4000.0])
def test_mel_distance_is_dacs_written_with_librosa(max_frequency):
    """Kumar et al. 2023, Section 3.5, with `librosa.stft` and `librosa.filters.mel` instead of our own."""
    librosa = pytest.importorskip("librosa")
    reference = noise(9000, 0).numpy()
    copy = 0.5 * reference + 0.02 * noise(9000, 1).numpy()
    expected = 0.0
    for window, bands in zip((32, 64, 128, 256, 512, 1024, 2048), (5, 10, 20, 40, 80, 160, 320), strict=True):
        filters = librosa.filters.mel(sr=RATE, n_fft=window, n_mels=bands, fmin=0.0, fmax=max_frequency)
        logs = []
        for clip in (reference, copy):
            spectrum = librosa.stft(clip, n_fft=window, hop_length=window // 4, window="hann", pad_mode="reflect")
            logs.append(np.log10(np.maximum(filters @ np.abs(spectrum), 1e-5)))
        expected += np.abs(logs[0] - logs[1]).mean()
    value = MelDistance(max_frequency).score(torch.from_numpy(reference), torch.from_numpy(copy), RATE)
    # float32 transforms on both sides, logarithms of small magnitudes.
    assert value["mel distance ↓"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("scale", "htk"), [("slaney", False), ("htk", True)])
@pytest.mark.parametrize("norm", ["slaney", None])
def test_mel_filters_are_librosas(scale, htk, norm):
    librosa = pytest.importorskip("librosa")
    expected = librosa.filters.mel(sr=16000, n_fft=512, n_mels=40, fmin=50.0, fmax=7000.0, htk=htk, norm=norm)
    ours = mel_filter_bank(16000, 512, 40, 50.0, 7000.0, scale=scale, norm=norm)
    # Both round float64 corners to float32 weights.
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-6)


def test_si_sdr_is_equation_3_of_le_roux_2019_by_hand():
    reference = np.array([1.0, -2.0, 0.5, 3.0, -2.5])  # mean 0
    copy = np.array([1.5, -1.0, 0.0, 2.0, -2.5])  # mean 0
    scale = (copy @ reference) / (reference @ reference)  # 15.75 / 20.5
    target = scale * reference
    expected = 10 * np.log10((target @ target) / ((copy - target) @ (copy - target)))
    value = SignalToDistortion().score(torch.tensor(reference).float(), torch.tensor(copy).float(), RATE)
    # float32 inputs that are exact.
    assert value["SI-SDR, dB ↑"] == pytest.approx(expected, abs=1e-9)
    assert scale == pytest.approx(15.75 / 20.5)


@pytest.mark.slow
def test_dnsmos_says_more_of_the_same_library_and_is_called_so():
    pytest.importorskip("soxr")
    pytest.importorskip("speechmos")
    from speechmos import dnsmos

    from latentlm.evaluation.speech.dnsmos import Dnsmos

    clip = noise(16000, 3).clamp(-1, 1)
    ours = Dnsmos().score(clip, 16000)
    theirs = dnsmos.run(clip.numpy(), 16000)
    assert list(ours) == ["DNSMOS, not UTMOS ↑", "DNSMOS P.808, not UTMOS ↑"]
    # The same network on the same samples.
    assert list(ours.values()) == pytest.approx([theirs["ovrl_mos"], theirs["p808_mos"]], abs=1e-6)
