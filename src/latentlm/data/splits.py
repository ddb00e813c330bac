"""How the training split of a data set is divided: what trains, what chooses settings, what the judges learn from.

    split `train` ─▶ validation (chooses guidance, steps, ...; never trained on)
                  └▶ the rest, on which models train ─▶ judge half (the judging classifier learns from it)
                                                     └▶ reference half (real images that samples are compared with)

Membership is a hash of the record's index, the same on every machine. For data sets that results are reported on, the
indices are committed too, in `recipes/splits/*.json`: they bind whatever becomes of the rule. Such a file is made by

    write_split(Path("recipes/splits/my_data.json"), make_split(60_000, data="where the data come from"))

Where pictures belong together (an emoji in three styles), `groups` keeps them in one part.
"""

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentlm.data.records import DataError
from latentlm.nn.keyed_noise import combine_keys

_JUDGE_STREAM = 0x1D6E
"""Makes the judge half independent of the choice of the validation records."""
_JUDGE_RULE = "the half of the records outside validation with the smaller hash (latentlm/data/splits.py)"


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """The parts of one training split.

    Attributes:
        data: Origin of the data, for people.
        num_records: Length of the split that is divided.
        seed: Of the rule.
        validation: Int64, sorted indices of the part `validation`.
        judge_half: Int64, sorted indices of the half of the part `train` that the judges learn from.
    """

    data: str
    num_records: int
    seed: int
    validation: np.ndarray
    judge_half: np.ndarray

    @property
    def train(self) -> np.ndarray:
        """Int64, sorted indices of the part `train`: both halves."""
        return np.setdiff1d(np.arange(self.num_records), self.validation)

    def as_json(self) -> dict[str, Any]:
        """What a split file holds; the judge half by its rule and checksum, which `read_split` compares."""
        return {
            "data": self.data,
            "num_records": self.num_records,
            "validation": self.validation.tolist(),
            "judge_half": {"rule": _JUDGE_RULE, "seed": self.seed, "sha256": _checksum(self.judge_half)},
        }


def make_split(
    num_records: int,
    *,
    data: str = "",
    validation_ratio: float = 0.05,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> Split:
    """Divide by the seeded rule.

    Args:
        num_records: Length of the split `train`.
        data: Origin of the data, for people.
        validation_ratio: Share of `validation`, in [0, 1); above 0, neither part is empty.
        seed: Another one, another division.
        groups: Int64 [num_records]. Records of one number are all in one part, and the ratio is one of groups.
    """
    if groups is not None:
        numbers, of_record = np.unique(groups, return_inverse=True)
        divided = make_split(len(numbers), validation_ratio=validation_ratio, seed=seed)
        validation = np.flatnonzero(np.isin(of_record, divided.validation))
        return _with_judge_half(data, num_records, seed, validation)
    num_validation = round(num_records * validation_ratio)
    if validation_ratio > 0 and num_records > 1:
        num_validation = min(max(num_validation, 1), num_records - 1)
    order = torch.argsort(combine_keys(seed, torch.arange(num_records)), stable=True).numpy()
    validation = np.sort(order[:num_validation])
    return _with_judge_half(data, num_records, seed, validation)


def read_split(name: str) -> Split:
    """Read a split file: a path, or else the name of one that comes with the package.

    Raises:
        DataError: If there is none of this name, or it does not hold what a split file holds.
    """
    path = _find(name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        num_records, seed = int(content["num_records"]), int(content["judge_half"]["seed"])
        validation = np.array(content["validation"], dtype=np.int64)
        data, checksum = str(content["data"]), content["judge_half"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a split file: {error!r}") from error
    in_range = len(validation) == 0 or (validation[0] >= 0 and validation[-1] < num_records)
    if validation.ndim != 1 or not in_range or (np.diff(validation) <= 0).any():
        raise DataError(f"{path}: validation must hold sorted, distinct indices below num_records = {num_records}")
    split = _with_judge_half(data, num_records, seed, validation)
    if _checksum(split.judge_half) != checksum:
        raise DataError(f"{path}: the judge half that this version computes is not the one that was committed")
    return split


def write_split(path: Path, split: Split) -> None:
    """Write a split file, one line per entry."""
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in split.as_json().items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _with_judge_half(data: str, num_records: int, seed: int, validation: np.ndarray) -> Split:
    rest = np.setdiff1d(np.arange(num_records), validation)
    order = torch.argsort(combine_keys(seed, _JUDGE_STREAM, torch.from_numpy(rest)), stable=True).numpy()
    judge_half = np.sort(rest[order[: len(rest) // 2]])
    return Split(data=data, num_records=num_records, seed=seed, validation=validation, judge_half=judge_half)


def _checksum(indices: np.ndarray) -> str:
    return hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()


def _find(name: str) -> Path:
    in_wheel, in_clone = Path(str(resources.files("latentlm"))) / "recipes", Path(__file__).parents[3] / "recipes"
    for path in (Path(name), in_wheel / "splits" / name, in_clone / "splits" / name):
        if path.is_file():
            return path
    raise DataError(f"there is no split file {name}, neither here nor among those that come with latentlm")
