"""DNSMOS: what is handed to the library, and what is refused before it. Its networks are run by the slow tests."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from latentlm.evaluation.speech.dnsmos import Dnsmos
from latentlm.evaluation.speech.interfaces import SpeechScorer, Unscorable

pytest.importorskip("soxr")


@pytest.fixture
def handed(monkeypatch) -> list[np.ndarray]:
    """Puts a library in the place of speechmos that remembers what it is given."""
    given: list[np.ndarray] = []

    def run(samples: np.ndarray, rate: int) -> dict[str, float]:
        assert rate == 16000
        assert np.abs(samples).max() <= 1, "the real one refuses more"
        given.append(samples)
        return {"ovrl_mos": 3.5, "sig_mos": 3.6, "bak_mos": 3.7, "p808_mos": 3.0}

    library = ModuleType("speechmos")
    library.dnsmos = ModuleType("speechmos.dnsmos")  # pyright: ignore[reportAttributeAccessIssue]
    library.dnsmos.run = run
    monkeypatch.setitem(sys.modules, "speechmos", library)
    return given


def test_scores_are_called_what_they_are(handed):
    scorer = Dnsmos()
    assert isinstance(scorer, SpeechScorer)
    assert scorer.score(0.1 * torch.ones(8000), 8000) == {
        "DNSMOS, not UTMOS ↑": 3.5,
        "DNSMOS P.808, not UTMOS ↑": 3.0,
    }
    assert handed[0].shape == (16000,)


def test_peaks_that_resampling_raises_are_brought_back(handed):
    square = torch.sign(torch.sin(2 * torch.pi * 500 * (torch.arange(8000) + 0.5) / 8000))
    Dnsmos().score(square, 8000)  # band limits make a square wave overshoot
    assert np.abs(handed[0]).max() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("clip", "reason"), [(torch.zeros(8000), "silence"), (torch.ones(3999), r"0\.5 s")])
def test_silence_and_scraps_are_refused(handed, clip, reason):
    with pytest.raises(Unscorable, match=reason):
        Dnsmos().score(clip, 8000)
    assert not handed


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "speechmos", None)
    with pytest.raises(ImportError, match="eval-speech"):
        Dnsmos()
