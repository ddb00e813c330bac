"""The voices of espeak-ng and flite, and one sentence spoken by one of them.

Both programs are called directly, never through a shell, with the text on stdin and a time limit; voices are checked
against the programs' own lists, since flite takes its default voice for one that it does not know.
"""

import hashlib
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from latentlm.data.records import BadRecord, DataError

Engine = Literal["espeak-ng", "flite"]
ENGINES: tuple[Engine, ...] = ("espeak-ng", "flite")
SplitKind = Literal["train", "validation", "test"]

NORMAL_RATE = 165
"""Words per minute at which flite speaks of itself, about; what rates of both engines are counted in."""
MAX_SENTENCE_CHARACTERS = 1000

_TEST_RATIO = 0.1
_VALIDATION_RATIO = 0.1
_TIMEOUT_SECONDS = 60.0
_NOT_VOICES = ("whisper", "announcer", "fast", "Demonic", "UniRobot", "anikaRobot", "robosoft", "RicishayMax")
"""Beginnings of the names of espeak-ng's variants that are effects, without pitch or like nobody."""
_FLITE_VOICES = ("kal16", "awb", "rms", "slt")
"""Of flite's voices, those that speak any text and are four people: kal is kal16 at 8 kHz, awb_time tells the time."""


@dataclass(frozen=True)
class SyntheticVoice:
    """Who speaks.

    Attributes:
        engine: `espeak-ng` or `flite`.
        name: The engine's name of the voice: an accent of espeak-ng, a person of flite.
        variant: Of espeak-ng: the timbre that the accent is spoken in; empty for its own.
        pitch: Of espeak-ng, 0 to 99; 50 is the variant's own.
    """

    engine: Engine
    name: str
    variant: str = ""
    pitch: int = 50

    @property
    def speaker(self) -> str:
        """A name that no other voice has."""
        if self.engine == "flite":
            return f"flite/{self.name}"
        return f"espeak-ng/{self.name}+{self.variant or 'default'}/{self.pitch}"

    @property
    def split_kind(self) -> SplitKind:
        """Where it belongs, by a hash of its timbre alone: the same in every corpus.

        Accent and pitch do not count: the same variant with another accent would hardly be an unheard voice. Nor does
        the number of a variation (steph2, klatt4); only in m1 to m8 and f1 to f5 it tells people apart.
        """
        family = self.variant.rstrip("0123456789")
        timbre = self.name if self.engine == "flite" else family if len(family) > 1 else self.variant
        return split_of_name(f"{self.engine}/{timbre}")


def split_of_name(name: str) -> SplitKind:
    """A tenth of all names are `test`, a tenth `validation`, by SHA-256."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    if place < _TEST_RATIO:
        return "test"
    return "validation" if place < _TEST_RATIO + _VALIDATION_RATIO else "train"


def require_engine(engine: Engine) -> str:
    """The version of a program, as it says itself.

    Raises:
        DataError: If it is not installed; the message names the Debian package.
    """
    if shutil.which(engine) is None:
        raise DataError(f"{engine} is not installed; on Debian and Ubuntu: apt-get install {engine}")
    lines = _output([engine, "--version"]).splitlines()
    return next((line.strip() for line in lines if "version:" in line), lines[0].strip() if lines else "unknown")


def list_voices(engine: Engine, *, language: str = "en", pitches: tuple[int, ...] = (50,)) -> list[SyntheticVoice]:
    """All usable voices of a program on this machine, sorted.

    Args:
        engine: Must be installed.
        language: Of espeak-ng, for example `en` or `en-gb`; flite speaks English only.
        pitches: Of espeak-ng: every voice in each of these.

    Raises:
        DataError: If there is none.
    """
    if engine == "flite":
        found = _output(["flite", "-lv"]).partition(":")[2].split()
        voices = [SyntheticVoice("flite", name) for name in _FLITE_VOICES if name in found]
    else:
        # Voices of MBROLA (mb/) need data of another package.
        accents = sorted({code for file, code in _espeak_files(language) if not file.startswith(("mb/", "!v/"))})
        files = [file.removeprefix("!v/") for file, _ in _espeak_files("variant")]
        variants = ["", *sorted(name for name in set(files) if not name.startswith(_NOT_VOICES))]
        voices = [
            SyntheticVoice("espeak-ng", accent, variant, pitch)
            for accent in accents
            for variant in variants
            for pitch in sorted(set(pitches))
        ]
    if not voices:
        raise DataError(f"{engine} has no voice for the language {language!r}")
    return voices


def speak(text: str, voice: SyntheticVoice, *, words_per_minute: int, name: str) -> bytes:
    """One sentence as a WAV file in memory, at the engine's own rate.

    Args:
        text: Read as plain text; espeak-ng's phoneme brackets are taken out.
        voice: From `list_voices`.
        words_per_minute: How fast.
        name: For the error message.

    Raises:
        BadRecord: If the program fails, takes too long, or says nothing.
    """
    plain = " ".join(text.replace("[[", " ").replace("]]", " ").split())
    if not plain or len(plain) > MAX_SENTENCE_CHARACTERS:
        raise BadRecord(name, f"a sentence of {len(plain)} characters, expected 1 to {MAX_SENTENCE_CHARACTERS}")
    with tempfile.TemporaryDirectory(prefix="latentlm-speak-") as folder:
        wav = Path(folder) / "spoken.wav"
        try:
            done = subprocess.run(
                _command(voice, words_per_minute, wav),
                input=plain.encode() + b"\n",
                capture_output=True,
                timeout=_TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise BadRecord(name, f"{voice.engine} took more than {_TIMEOUT_SECONDS:g} s") from error
        data = wav.read_bytes() if wav.is_file() else b""
    if done.returncode != 0 or not data:
        said = done.stderr.decode("utf-8", "replace").strip()[:200]
        raise BadRecord(name, f"{voice.speaker} wrote no sound (exit code {done.returncode}: {said})")
    return data


def _command(voice: SyntheticVoice, words_per_minute: int, wav: Path) -> list[str]:
    if voice.engine == "flite":
        stretch = f"duration_stretch={NORMAL_RATE / words_per_minute:.4f}"
        return ["flite", "-voice", voice.name, "--setf", stretch, "-f", "-", "-o", str(wav)]
    full_name = f"{voice.name}+{voice.variant}" if voice.variant else voice.name
    options = ["-v", full_name, "-p", str(voice.pitch), "-s", str(words_per_minute)]
    return ["espeak-ng", *options, "--stdin", "-w", str(wav)]


def _espeak_files(language: str) -> list[tuple[str, str]]:
    """File and language of every voice that espeak-ng lists; the columns are

    Pty Language Age/Gender VoiceName File Other Languages
    """
    rows = []
    for line in _output(["espeak-ng", f"--voices={language}"]).splitlines()[1:]:
        fields = line.split(maxsplit=4)
        if len(fields) == 5:
            # A name with a blank in it ("!v/Mr serious") ends before the gap to the next column.
            rows.append((fields[4].split("  ")[0].split(" (")[0].strip(), fields[1]))
    return rows


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(f"{command[0]} cannot be run ({error})") from error
    return (done.stdout or done.stderr).decode("utf-8", "replace")
