"""DNSMOS: opinion scores that a network predicts from the sound alone. It is not UTMOS, and never printed as such."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from latentlm.evaluation.speech.interfaces import Unscorable, peak, refuse_silence, resample

_RATE = 16000
_MIN_SECONDS = 0.5
"""The network hears 9 s and repeats what is shorter; below half a second it would judge a rattle."""


class Dnsmos:
    """DNSMOS P.835 overall and P.808 (Reddy et al. 2022), with the models of the library `speechmos`.

    Raises:
        ImportError: If speechmos or what it uses is missing; the message names the extra.
    """

    names: tuple[str, ...] = ("DNSMOS, not UTMOS ↑", "DNSMOS P.808, not UTMOS ↑")

    def __init__(self) -> None:
        try:
            from speechmos import dnsmos
        except ImportError as error:
            raise ImportError("DNSMOS needs the library speechmos: pip install 'latentlm[eval-speech]'") from error
        self._dnsmos: Any = dnsmos

    def score(self, waveform: Float[Tensor, " S"], sample_rate: int) -> Mapping[str, float]:
        """Opinion scores from 1 to 5; made for noise suppression, so that they hardly see wrong words or voices."""
        refuse_silence(waveform)
        if len(waveform) < _MIN_SECONDS * sample_rate:
            raise Unscorable(f"shorter than {_MIN_SECONDS} s")
        wide = resample(waveform, sample_rate, _RATE)
        level = max(1.0, peak(wide))  # resampling may pass 1, which the library refuses
        said = self._dnsmos.run((wide / level).numpy(), _RATE)
        return dict(zip(self.names, (float(said["ovrl_mos"]), float(said["p808_mos"])), strict=True))
