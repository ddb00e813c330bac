"""pocketsphinx as a judge that was trained elsewhere: reads recorded and flite voices passably, espeak-ng not at all.

Its models ship with the library (CMU US English, 16 kHz). Its errors are always called 'pocketsphinx WER'.

Shapes: S samples.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentlm.evaluation.speech.interfaces import SILENCE, Clips, peak, resample
from latentlm.evaluation.speech.word_errors import DIGIT_WORDS

_RATE = 16000
_LEVEL = 0.5
"""Peak that every clip is brought to: the recogniser's floor is absolute."""
_PAUSE_SECONDS = 0.25
"""Of silence around a clip: words at the very edge are lost otherwise."""


class PocketsphinxRecogniser:
    """A `Recogniser` with a grammar of word strings, or with the general language model.

    Args:
        words: The only words, in strings of any length (a JSGF grammar); None is general English.

    Raises:
        ImportError: If pocketsphinx is missing; the message names the extra.
        ValueError: If a word is not in the dictionary.
    """

    label = "pocketsphinx WER"

    def __init__(self, words: Sequence[str] | None = DIGIT_WORDS) -> None:
        try:
            import pocketsphinx
        except ImportError as error:
            raise ImportError(
                "this judge needs the library pocketsphinx: pip install 'latentlm[eval-speech]'"
            ) from error
        self._words = None if words is None else tuple(words)
        # Means over each whole clip: by default they are carried from clip to clip, and results hang on the order.
        settings: dict[str, Any] = {"samprate": _RATE, "cmn": "batch", "loglevel": "FATAL"}
        if words is not None:
            settings["lm"] = None
        self._decoder: Any = pocketsphinx.Decoder(**settings)
        if words is not None:
            if unknown := [word for word in words if self._decoder.lookup_word(word) is None]:
                raise ValueError(f"pocketsphinx's dictionary has no {unknown[0]!r}")
            grammar = f"#JSGF V1.0; grammar words; public <words> = ( {' | '.join(words)} )+ ;"
            self._decoder.add_jsgf_string("words", grammar)
            self._decoder.activate_search("words")

    def fingerprint(self) -> str:
        """Of all that its texts hang on: the library's version, which holds the models, and the words."""
        from importlib.metadata import version

        return f"pocketsphinx {version('pocketsphinx')} {self._words}"

    def transcribe(self, clips: Clips, sample_rate: int) -> list[str]:
        """A text per clip; the order of the clips does not matter."""
        return [self._read(clip, sample_rate) for clip in clips]

    def _read(self, clip: Tensor, sample_rate: int) -> str:
        level = peak(clip)
        if level < SILENCE:
            return ""
        pause = torch.zeros(round(_PAUSE_SECONDS * _RATE))
        heard = torch.cat([pause, resample(clip * (_LEVEL / level), sample_rate, _RATE), pause])
        self._decoder.start_utt()
        self._decoder.process_raw((heard.clamp(-1, 1) * 32767).numpy().astype(np.int16).tobytes(), full_utt=True)
        self._decoder.end_utt()
        best = self._decoder.hyp()
        return best.hypstr if best is not None else ""
