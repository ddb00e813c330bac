"""Recordings -> batches of waveforms. Start with `AudioDataConfig`, `open_audio` and `make_audio_loader`.

Flow: `sources/` (one reader per container format) yield records; `decoding.py` opens their sound under limits;
`datasets.py` makes them examples, whole or cropped; `batches.py` pads them and mixes groups by weight.
`augmentation.py` and `voice_shift.py` change them in training, `words.py` joins single words into utterances,
`synthesis.py` renders a corpus of many voices, `writing.py` writes WAV.
"""

from latentlm.data.audio.augmentation import AugmentationConfig, augment_waveforms
from latentlm.data.audio.batches import (
    AudioBatches,
    AudioMixtureConfig,
    audio_loader_factory,
    collate_audio,
    make_audio_loader,
    open_audio_mixture,
    read_audio_once,
)
from latentlm.data.audio.config import AudioDataConfig
from latentlm.data.audio.datasets import AudioDataset, AudioExamples, open_audio
from latentlm.data.audio.decoding import AudioHeader, decode_audio, read_header, stream_audio
from latentlm.data.audio.levels import LevelReport, active_level_db, normalize_level, report_levels
from latentlm.data.audio.voice_shift import shift_voice
from latentlm.data.audio.words import WordPairs, WordStringConfig, WordStrings
from latentlm.data.audio.writing import WavEncoder, wav_header, write_wav

__all__ = [
    "AudioBatches",
    "AudioDataConfig",
    "AudioDataset",
    "AudioExamples",
    "AudioHeader",
    "AudioMixtureConfig",
    "AugmentationConfig",
    "LevelReport",
    "WavEncoder",
    "WordPairs",
    "WordStringConfig",
    "WordStrings",
    "active_level_db",
    "audio_loader_factory",
    "augment_waveforms",
    "collate_audio",
    "decode_audio",
    "make_audio_loader",
    "normalize_level",
    "open_audio",
    "open_audio_mixture",
    "read_audio_once",
    "read_header",
    "report_levels",
    "shift_voice",
    "stream_audio",
    "wav_header",
    "write_wav",
]
