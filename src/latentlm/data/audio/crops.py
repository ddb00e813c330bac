"""Crops of examples that come whole, such as joined words: every example of one length.

Shapes: S samples.
"""

from typing import Any

import torch
from torch.nn import functional as F

from latentlm.data.audio.datasets import AudioExamples
from latentlm.data.loader import Batch
from latentlm.nn.keyed_noise import combine_keys, keyed_uniform

_STREAM = 0xC40B  # keeps these places apart from other keyed draws with the same seed


class Crops(AudioExamples):
    """One crop of each example, at a place that hangs on (seed, epoch, key); short ones are padded with zeros.

    An example has `audio` [S], `num_samples`, `key` and `speaker`; what a text says is not all in a crop.

    Args:
        examples: Whole.
        num_samples: S.

    Raises:
        ValueError: If a crop would be empty.
    """

    def __init__(self, examples: AudioExamples, num_samples: int) -> None:
        super().__init__(rejected=examples.rejected, max_bad_records=examples.max_bad_records)
        if num_samples < 1:
            raise ValueError(f"a crop of {num_samples} samples is empty")
        self.examples = examples
        self.num_samples = num_samples
        self.sample_rate = examples.sample_rate

    def __len__(self) -> int:
        return len(self.examples)

    def read(self, index: int, *, seed: int, epoch: int) -> dict[str, Any]:
        """See `AudioExamples.read`."""
        example = self.examples.read(index, seed=seed, epoch=epoch)
        audio = example["audio"]
        spare = len(audio) - self.num_samples
        key = torch.tensor(int(example["key"]))
        start = int(keyed_uniform(seed, combine_keys(epoch, key), stream=_STREAM) * (max(spare, 0) + 1))
        crop = audio[start : start + self.num_samples]
        return {
            "audio": F.pad(crop, (0, self.num_samples - len(crop))),
            "num_samples": len(crop),
            "key": example["key"],
            "speaker": example["speaker"],
        }

    def augment(self, batch: Batch, *, seed: int, epochs: torch.Tensor) -> Batch:
        """As the whole examples are."""
        return self.examples.augment(batch, seed=seed, epochs=epochs)
