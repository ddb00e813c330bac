"""ViSQOL and UTMOS with the programs and weights that the user brings; nothing is ever downloaded.

Shapes: S samples.
"""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from latentlm.data.audio.writing import write_wav
from latentlm.evaluation.speech.interfaces import Unscorable, refuse_silence, resample

_VISQOL_SPEECH, _VISQOL_AUDIO = 16000, 48000
_VISQOL_SECONDS = 120
"""A clip of 10 s takes it about a second; whoever takes two minutes hangs."""
_VISQOL_ANSWER = re.compile(r"MOS-LQO:\s*([0-9.]+)")
_UTMOS_RATE = 16000
_UTMOS_MIN_SECONDS = 0.5


class Visqol:
    """ViSQOL (Chinen et al. 2020) by its own command-line program, in speech mode.

    Args:
        program: The binary `visqol` that you built from its sources.
        model: Its file of the mapping from similarity to quality; None lets the program look for its own.
        speech: Speech mode at 16 kHz; False is audio mode at 48 kHz. The two do not compare.

    Raises:
        ValueError: If there is no such program or model.
    """

    def __init__(self, program: Path, *, model: Path | None = None, speech: bool = True) -> None:
        for file in (program, model):
            if file is not None and not file.is_file():
                raise ValueError(
                    f"there is no file {file}; ViSQOL is the program of github.com/google/visqol, which you build "
                    "yourself, with its model file beside it"
                )
        self._rate = _VISQOL_SPEECH if speech else _VISQOL_AUDIO
        self._command = [str(program.resolve())]
        self._command += ["--use_speech_mode"] if speech else []
        self._command += ["--similarity_to_quality_model", str(model.resolve())] if model else []
        self._folder = program.resolve().parent  # the program finds its default model from here
        self.names: tuple[str, ...] = ("ViSQOL ↑",) if speech else ("ViSQOL, audio mode ↑",)

    def score(self, reference: Float[Tensor, " S"], copy: Float[Tensor, " S"], sample_rate: int) -> Mapping[str, float]:
        """MOS-LQO.

        Raises:
            Unscorable: If the reference is silent, or the program gives no score for this pair.
            ValueError: If the program cannot run, or hangs.
        """
        refuse_silence(reference)
        with tempfile.TemporaryDirectory() as folder:
            files = {"reference": Path(folder) / "reference.wav", "degraded": Path(folder) / "degraded.wav"}
            for path, clip in zip(files.values(), (reference, copy), strict=True):
                write_wav(path, resample(clip, sample_rate, self._rate).clamp(-1, 1), self._rate)
            arguments = [part for name, path in files.items() for part in (f"--{name}_file", str(path))]
            try:
                done = subprocess.run(
                    [*self._command, *arguments],
                    cwd=self._folder,
                    capture_output=True,
                    text=True,
                    timeout=_VISQOL_SECONDS,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise ValueError(f"ViSQOL did not run: {error}") from error
        answer = _VISQOL_ANSWER.search(done.stdout)
        if done.returncode != 0 or answer is None:
            raise Unscorable("ViSQOL gives no score")
        return {self.names[0]: float(answer[1])}


class Utmos:
    """UTMOS (Saeki et al. 2022) from a TorchScript file.

    Its weights exist as a checkpoint of fairseq and as Python code that loads it (the repository tarepan/SpeechMOS).
    Neither is a library, so the network is read from one file that you trace there once:
    `torch.jit.trace(lambda_of(waveform [1, S] at 16 kHz -> score [1]), example).save(file)`.

    Args:
        file: That file.
        device: Where the network runs.

    Raises:
        ValueError: If there is no such file, or it is no TorchScript.
    """

    names: tuple[str, ...] = ("UTMOS ↑",)

    def __init__(self, file: Path, *, device: str | torch.device = "cpu") -> None:
        if not file.is_file():
            raise ValueError(
                f"there is no file {file}; UTMOS is read from a TorchScript file that maps a waveform [1, S] at 16 kHz "
                "to a score [1], which you trace from an UTMOS implementation of yours"
            )
        try:
            self._network = torch.jit.load(str(file), map_location=device).eval()
        except RuntimeError as error:
            raise ValueError(f"{file} is no TorchScript file: {error}") from error
        self._device = torch.device(device)

    @torch.no_grad()
    def score(self, waveform: Float[Tensor, " S"], sample_rate: int) -> Mapping[str, float]:
        """A predicted opinion score from 1 to 5."""
        refuse_silence(waveform)
        if len(waveform) < _UTMOS_MIN_SECONDS * sample_rate:
            raise Unscorable(f"shorter than {_UTMOS_MIN_SECONDS} s")
        wide = resample(waveform, sample_rate, _UTMOS_RATE).to(self._device)
        return {self.names[0]: float(self._network(wide[None]).squeeze())}
