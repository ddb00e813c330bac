"""Speak a text with a trained model, in the voice of a recording it has never heard.

    latentlm say "three one four" --model RUN/model --voice anna.wav --voice-text "two nine seven" -o three.wav
    latentlm say - --model RUN/model --voice anna.safetensors --stream wav < text.txt | ffplay -nodisp -autoexit -

The voice is a recording of a few seconds with what it says (--voice-text), or a file that `latentlm voice` made of
both. Without a voice the model chooses one. With --stream sound comes out while it is drawn.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentlm.generation.speaker import SomeVoice, Speaker, SpeakingConfig

TAKES_RECIPE = False

MODEL_VARIABLE = "LATENTLM_MODEL"

AUDIBLE = 10 ** (-40 / 20)
"""Peak of a block that counts as sound, of full scale: -40 dB."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to say, by whom, how, and where the sound goes."""
    parser.add_argument("text", help="what to say; - reads it from the standard input")
    add_model_arguments(parser)
    parser.add_argument("--voice", type=Path, metavar="FILE", help="recording or voice file to speak as")
    parser.add_argument("--voice-text", metavar="TEXT", help="what the recording says (default: the voice file's own)")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="WAV file to write (default: say.wav)")
    parser.add_argument(
        "--stream",
        choices=("wav", "pcm"),
        help="write to the standard output as it is drawn (pcm: no header)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all draws (default: 0)")
    parser.add_argument("--cfg-scale", type=float, help="guidance (default: the model's)")
    parser.add_argument("--steps", type=int, help="solver steps per latent (default: the model's; codes have none)")
    parser.add_argument("--end-temperature", type=float, default=0.0, help="of the choice to end (default: 0, greedy)")
    parser.add_argument("--max-seconds", type=float, default=30.0, help="bound on the length (default: 30)")
    parser.add_argument("--no-guard", action="store_true", help="do not bound the length by that of the text")
    parser.add_argument("--retries", type=int, default=0, help="draws again if a bound ended it (default: 0)")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"), help="default: float32")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, and where it runs."""
    parser.add_argument(
        "--model", default=os.environ.get(MODEL_VARIABLE), help=f"folder or hub id (default: ${MODEL_VARIABLE})"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a CUDA device if there is one)")


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Speak, then say on the standard error how long it took."""
    if arguments.stream and arguments.out is not None:
        raise ValueError("--stream writes to the standard output; leave -o out, or redirect the output")
    if arguments.stream and arguments.retries:
        raise ValueError("--stream cannot take back what was heard; leave --retries out")
    if arguments.voice is not None:
        refuse_missing(arguments.voice)
    text = sys.stdin.read() if arguments.text == "-" else arguments.text
    from latentlm.generation.speaker import SpeakingConfig

    speaker = open_speaker(arguments)
    voice = None
    if arguments.voice is not None:
        voice = speaker.read_voice(arguments.voice, text=arguments.voice_text)
    config = SpeakingConfig(
        cfg_scale=arguments.cfg_scale,
        num_inference_steps=arguments.steps,
        end_temperature=arguments.end_temperature,
        max_seconds=arguments.max_seconds,
        length_guard=not arguments.no_guard,
        num_retries=arguments.retries,
        precision=arguments.precision,
    )
    speak_out = _stream if arguments.stream else _write
    speak_out(speaker, text.strip(), voice, config, arguments)
    return 0


def refuse_missing(recording: Path) -> None:
    """Before the model is loaded, which takes longer.

    Raises:
        ValueError: If there is no such file.
    """
    if not recording.is_file():
        raise ValueError(f"{recording} does not exist, or is no file; give a recording or a voice file")


def open_speaker(arguments: argparse.Namespace) -> "Speaker":
    """The model of the command line.

    Raises:
        ValueError: If none is named, or it does not speak.
    """
    if not arguments.model:
        raise ValueError(f"--model is missing: the folder of a model that speaks (or set {MODEL_VARIABLE})")

    import latentlm
    from latentlm.cli.device import resolve_device
    from latentlm.generation.speech import as_speaker

    return as_speaker(latentlm.load(arguments.model, device=resolve_device(arguments.device)), name=arguments.model)


def _write(
    speaker: "Speaker",
    text: str,
    voice: "SomeVoice | None",
    config: "SpeakingConfig",
    arguments: argparse.Namespace,
) -> None:
    from latentlm.data.audio import write_wav

    start = time.perf_counter()
    (said,) = speaker.speak([text], [voice], config=config, seeds=[arguments.seed])
    took = time.perf_counter() - start
    path = arguments.out or Path("say.wav")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_wav(path, said.waveform, said.sample_rate)
    seconds = len(said.waveform) / said.sample_rate
    end = "ended by itself" if said.ended_by_itself else "stopped at its bound"
    draws = "" if len(said.seeds) == 1 else f" at draw {len(said.seeds)}"
    print(
        f"{path}: {seconds:.2f} s of sound, {len(said.tokens)} tokens, {end}{draws}; {took / seconds:.2f} s a second",
        file=sys.stderr,
    )


def _stream(
    speaker: "Speaker",
    text: str,
    voice: "SomeVoice | None",
    config: "SpeakingConfig",
    arguments: argparse.Namespace,
) -> None:
    from latentlm.data.audio import WavEncoder

    encoder = WavEncoder(speaker.sample_rate, arguments.stream)
    start = time.perf_counter()
    num_samples, first_sound = 0, None
    for chunk in speaker.stream(text, voice, config=config, seed=arguments.seed):
        sys.stdout.buffer.write(encoder.encode(chunk))
        sys.stdout.buffer.flush()
        num_samples += len(chunk)
        if first_sound is None and float(chunk.abs().max()) > AUDIBLE:
            first_sound = time.perf_counter() - start
    took, seconds = time.perf_counter() - start, num_samples / speaker.sample_rate
    heard = "all of it silent" if first_sound is None else f"the first after {first_sound:.2f} s"
    print(f"{seconds:.2f} s of sound, {heard}; {took / seconds:.2f} s a second", file=sys.stderr)
