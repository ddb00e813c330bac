"""Send a sound or a picture through a trained tokenizer and back: hear and see what it keeps.

    latentlm reconstruct speech.flac --model RUN/model -o speech_back.wav
    latentlm reconstruct cat.jpg --model RUN/model -o cat_back.png

What comes back is of the mean of a sigma-VAE's latents, or of all codes. Sounds stream through: hours of them take the
memory of seconds. Pictures are brought to the size the tokenizer was trained on.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentlm.generation.pipeline_folder import AnyImageTokenizer
    from latentlm.tokenizers.speech import SpeechCodec, SpeechTokenizer

TAKES_RECIPE = False

_MAX_HOURS = 12
"""What a WAV file can count at 48 kHz."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What goes in, through which tokenizer, and where it comes out."""
    parser.add_argument("file", type=Path, help="WAV, FLAC, OGG, MP3, of any rate and length; or a picture")
    parser.add_argument("--model", required=True, help="a tokenizer: the model folder of its run, or a hub id")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="WAV or PNG (default: FILE_back, beside it)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a CUDA device if there is one)")


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Read, encode, decode, write, and say how like they are."""
    import latentlm
    from latentlm.cli.device import resolve_device
    from latentlm.generation.pipeline_folder import AnyImageTokenizer
    from latentlm.tokenizers.speech import SpeechCodec, SpeechTokenizer

    if not arguments.file.is_file():
        raise ValueError(f"{arguments.file}: there is no such file")
    tokenizer = latentlm.load(arguments.model, device=resolve_device(arguments.device))
    if isinstance(tokenizer, SpeechTokenizer | SpeechCodec):
        print(_sound(tokenizer, arguments.file, _out(arguments, ".wav")))
    elif isinstance(tokenizer, AnyImageTokenizer):
        print(_picture(tokenizer, arguments.file, _out(arguments, ".png")))
    else:
        raise ValueError(f"{arguments.model} holds a '{tokenizer.kind}', which is no tokenizer")
    return 0


def _out(arguments: argparse.Namespace, suffix: str) -> Path:
    out: Path = arguments.out or arguments.file.with_name(f"{arguments.file.stem}_back{suffix}")
    if out.resolve() == arguments.file.resolve():
        raise ValueError(f"{out} would be written over what is read; choose another -o")
    if out.suffix.lower() != suffix:
        medium = "sounds" if suffix == ".wav" else "pictures"
        raise ValueError(f"{out}: {medium} are written as {suffix}; choose another -o")
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def _sound(tokenizer: "SpeechTokenizer | SpeechCodec", file: Path, out: Path) -> str:
    import torch
    from tqdm import tqdm

    from latentlm.data.audio import stream_audio
    from latentlm.data.audio.decoding import sound_library
    from latentlm.tokenizers.speech import stream_through

    rate = tokenizer.config.sample_rate
    chunk_samples = max(1, round(tokenizer.config.frame_rate)) * tokenizer.config.hop_length  # about a second
    blocks = stream_audio(file, str(file), sample_rate=rate, max_seconds=_MAX_HOURS * 3600.0)
    chunks = (chunk for block in blocks for chunk in torch.from_numpy(block).split(chunk_samples))
    staged = out.with_name(f".{out.name}.part")
    num_samples = 0
    try:
        with (
            sound_library().SoundFile(str(staged), "w", rate, 1, subtype="PCM_16", format="WAV") as written,
            tqdm(unit="s", desc=file.name, bar_format="{desc}: {n:.0f} s, {rate_fmt}", leave=False) as bar,
        ):
            for back in stream_through(tokenizer, chunks):
                written.write(back.float().numpy())
                num_samples += len(back)
                bar.update(len(back) / rate)
        staged.replace(out)
    finally:
        staged.unlink(missing_ok=True)
    config = tokenizer.config
    return f"{out}: {num_samples / rate:.2f} s at {rate} Hz, by {config.frame_rate:g} latents or frames a second"


def _picture(tokenizer: "AnyImageTokenizer", file: Path, out: Path) -> str:
    import torch

    from latentlm.data.images import load_image
    from latentlm.evaluation.reconstruction import psnr
    from latentlm.pictures import save_picture, to_uint8

    config = tokenizer.config
    pixels = load_image(
        file.read_bytes(),
        str(file),
        image_size=config.image_size,
        num_channels=config.num_channels,
        resize="center_crop",
    )
    image = torch.tensor(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        options: dict[str, Any] = {"sample": False} if hasattr(tokenizer, "posterior") else {}
        tokens = tokenizer.encode(image.to(next(tokenizer.parameters()).device), **options)
        back = tokenizer.decode(tokens).cpu().clamp(-1, 1)
    save_picture(out, to_uint8(back)[0])
    likeness = float(psnr(back, image))
    return f"{out}: {config.image_size} x {config.image_size}, {tokens.shape[1]} tokens, PSNR {likeness:.2f} dB"
