"""Which recordings, how they are divided and cut: the settings of `open_audio`."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from latentlm.data.audio.augmentation import AugmentationConfig

AudioFormat = Literal["auto", "audio_folder", "parquet", "webdataset", "hf_dataset", "manifest"]


@dataclass(frozen=True, kw_only=True)
class AudioDataConfig:
    path: str
    """A file or folder. A relative one is looked for here first, then in the folder that $LATENTLM_DATA names."""
    sample_rate: int = 24000
    """Hz; recordings of other rates are resampled, several channels are averaged."""
    format: AudioFormat = "auto"
    """`auto` tells it from the path."""
    split: str = "train"
    """The split to train on, for formats that hold several."""
    test_path: str | None = None
    """The test recordings, as a data set of their own; None if they are the split called `test` of `path`."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our record names -> the file's own, for example {text: word}."""
    audio_root: str | None = None
    """The folder that the names in a manifest begin from; None for the manifest's own. Nothing outside is opened."""
    crop_seconds: float | None = None
    """Length of every example, cut at a random place, anew each epoch; None for whole recordings."""
    crop_attempts: int = 1
    """Places that are tried for a crop until one is not silent; if all are, the loudest is taken."""
    min_seconds: float = 0.0
    """Shorter recordings are left out."""
    max_seconds: float = 60.0
    """Longer recordings are left out, unless crops are cut from them. Where lengths are known only once a recording is
    opened (tars), what is left out counts as a bad record."""
    level_db: float | None = None
    """Active level that every example is scaled to, dB of full scale (-23 is usual); None leaves it."""
    filters: dict[str, str | int] = field(default_factory=dict)
    """Only records with these values in these columns, in the parts train and validation."""
    test_filters: dict[str, str | int] = field(default_factory=dict)
    """Likewise in the part test, for example {split_kind: new_speaker}."""
    only_speakers: list[str] = field(default_factory=list)
    """Only recordings of these, in all parts; empty for all."""
    exclude_speakers: list[str] = field(default_factory=list)
    """No recordings of these, in any part."""
    require_text: bool = False
    """Leave out records without a transcript, in all parts."""
    validation_ratio: float = 0.05
    """Share of the training split that is held out as the part `validation`."""
    split_seed: int = 0
    """Chooses the part `validation`."""
    split_file: str | None = None
    """A file of committed indices (`recipes/splits/`), instead of ratio and seed."""
    split_by: Literal["record", "speaker"] = "record"
    """Whether recordings or whole speakers are held out."""
    cache_mib: int = 0
    """Memory for decoded recordings, in every data worker: a small corpus of Opus or MP3 is then decoded only once. A
    minute at 24 kHz takes 5.5 MiB."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """Random changes in training; none by default."""
    max_bad_records: int = 100
    """Unusable recordings are named and skipped; above this number the run stops."""

    def __post_init__(self) -> None:
        if self.sample_rate < 1:
            raise ValueError(f"sample_rate is {self.sample_rate}, must be positive")
        if self.crop_seconds is not None and self.crop_seconds * self.sample_rate < 1:
            raise ValueError(f"crop_seconds is {self.crop_seconds}, less than one sample")
        if self.crop_attempts < 1:
            raise ValueError(f"crop_attempts is {self.crop_attempts}, must be at least 1")
        if not 0 <= self.min_seconds < self.max_seconds:
            raise ValueError(f"min_seconds={self.min_seconds} must be in [0, max_seconds={self.max_seconds})")
        if not 0 <= self.validation_ratio < 1:
            raise ValueError(f"validation_ratio is {self.validation_ratio}, must be in [0, 1)")
        if self.max_bad_records < 0:
            raise ValueError(f"max_bad_records is {self.max_bad_records}, must be at least 0")
        if self.cache_mib < 0:
            raise ValueError(f"cache_mib is {self.cache_mib}, must be at least 0")
        if self.format not in get_args(AudioFormat):
            raise ValueError(f"format is {self.format!r}, must be one of {', '.join(get_args(AudioFormat))}")
        if self.split_by not in ("record", "speaker"):
            raise ValueError(f"split_by is {self.split_by!r}, must be 'record' or 'speaker'")
        if self.split_file is not None and self.split_by == "speaker":
            raise ValueError("split_file holds records; it cannot be used with split_by=speaker")
        if set(self.only_speakers) & set(self.exclude_speakers):
            raise ValueError("a speaker cannot be among only_speakers and exclude_speakers at once")
        unknown = set(self.columns) - {"audio", "text", "speaker"}
        if unknown:
            raise ValueError(f"columns maps {sorted(unknown)}, but recordings have only audio, text, speaker")

    @property
    def crop_samples(self) -> int | None:
        """Samples of every example, if examples are crops."""
        return None if self.crop_seconds is None else round(self.crop_seconds * self.sample_rate)
