"""Make a voice file of a recording: what `latentlm say --voice` goes on in.

    latentlm voice anna.wav --model RUN/model --text "what anna says" -o anna.safetensors

The file holds plain tensors, the text, and the fingerprint of the model's speech tokenizer, which alone can read it.
"""

import argparse
from pathlib import Path

from latentlm.cli.say import add_model_arguments, open_speaker, refuse_missing

TAKES_RECIPE = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which recording, of which model, and where to write."""
    parser.add_argument("recording", type=Path, help="WAV, FLAC, OGG, MP3; a minute at most, some seconds are enough")
    add_model_arguments(parser)
    parser.add_argument("--text", help="what the recording says; say asks for it otherwise")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="default: the recording's name.safetensors")


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Encode the recording and write the voice."""
    if arguments.recording.suffix == ".safetensors":
        raise ValueError(f"{arguments.recording} is a voice file already; give a recording")
    refuse_missing(arguments.recording)
    voice = open_speaker(arguments).read_voice(arguments.recording, text=arguments.text)
    path = arguments.out or arguments.recording.with_suffix(".safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    voice.save(path)
    print(f"{path}: {voice.seconds:.2f} s; pass it to latentlm say --voice {path}")
    return 0
