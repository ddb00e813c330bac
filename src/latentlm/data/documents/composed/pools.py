"""Labelled pictures to draw from, and who draws: pools, and the dealer of one document's random choices."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from latentlm.data.documents.document import RawImage
from latentlm.data.documents.opening import digest_of_files
from latentlm.data.records import Source

MAX_OF_ONE_CLASS = 4
"""Pictures of one class that a document may show; a class must have as many, since none is shown twice."""

_VOWELS_SPOKEN_AS_CONSONANTS = ("one", "uni", "use", "eu")  # a one, a uniform, a used car, a euro
_HISSING = ("s", "x", "z", "ch", "sh")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """The labelled pictures of one part of one data set.

    Attributes:
        noun: For all of its classes: "digit".
        names: Of each class: "seven".
        plurals: Of each name: "sevens".
        source: Where the pictures are.
        records: For each class Int64 [n], the places in `source` of its pictures of this part.
        files: What `source` was read from.
    """

    noun: str
    names: tuple[str, ...]
    plurals: tuple[str, ...]
    source: Source
    records: tuple[np.ndarray, ...]
    files: tuple[Path, ...]

    @property
    def num_classes(self) -> int:
        """Class ids are in [0, num_classes)."""
        return len(self.names)

    def fingerprint(self) -> str:
        """SHA-256, as hex, over files, names, and which picture has which label; see `DocumentSource.fingerprint`."""
        digest = hashlib.sha256(repr((self.noun, self.names, self.plurals)).encode())
        digest.update(digest_of_files(self.files).encode())
        for records in self.records:
            digest.update(len(records).to_bytes(8, "little") + records.astype("<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture in a document, with what is true of it.

    Attributes:
        image: The picture.
        pool: Where it comes from.
        label: Its class id there.
        key: Of its record; a test file of its own counts anew.
    """

    image: RawImage
    pool: Pool
    label: int
    key: int

    @property
    def name(self) -> str:
        """Of its class."""
        return self.pool.names[self.label]


class Dealer:
    """Deals what is random in one document: a pure function of (pools, key). No picture is dealt twice.

    Only `random.Random.random` is used, the one method whose sequence Python promises to keep for all versions.

    Args:
        pools: At least one.
        key: Of the document.
    """

    def __init__(self, pools: Sequence[Pool], key: int) -> None:
        self._pools = pools
        self._random = random.Random(key % 2**64)  # of a negative seed it would drop the sign
        self._dealt: dict[tuple[str, int], list[int]] = {}  # (noun, label) -> positions in the pool's records

    def number(self, stop: int) -> int:
        """An integer in [0, stop)."""
        return int(self._random.random() * stop)

    def pick(self, options: Sequence[T]) -> T:
        """One of them, all alike."""
        return options[self.number(len(options))]

    def pick_weighted(self, weights: Mapping[str, float]) -> str:
        """A key, as often as its value says; values are at least 0, and one is above."""
        rest = self._random.random() * sum(weights.values())
        possible = [name for name, weight in weights.items() if weight > 0]
        for name in possible[:-1]:
            rest -= weights[name]
            if rest < 0:
                return name
        return possible[-1]

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different ones in random order; as many as there are is a shuffle."""
        left = list(options)
        return [left.pop(self.number(len(left))) for _ in range(count)]

    def pool(self) -> Pool:
        """Pools are drawn alike, whatever their sizes."""
        return self.pick(self._pools)

    def label(self, pool: Pool, *, other_than: int | None = None) -> int:
        """A class, all alike, so that no answer is frequent only because its pictures are."""
        return self.pick([label for label in range(pool.num_classes) if label != other_than])

    def picture(self, pool: Pool, label: int) -> Shown:
        """A picture of a class that this document does not show yet.

        Raises:
            BadRecord: If it cannot be read.
        """
        records, dealt = pool.records[label], self._dealt.setdefault((pool.noun, label), [])
        position = self.number(len(records) - len(dealt))
        for taken in sorted(dealt):  # counts only those not dealt yet
            position += position >= taken
        dealt.append(position)
        place = int(records[position])
        record = pool.source[place]
        return Shown(RawImage(record["image"], record["name"]), pool, label, int(record["key"]))


def with_article(name: str) -> str:
    """ "a seven", "an eight": by the first letters."""
    spelled = name.lower()
    vowel = spelled.startswith(tuple("aeiou")) and not spelled.startswith(_VOWELS_SPOKEN_AS_CONSONANTS)
    return f"an {name}" if vowel else f"a {name}"


def plural_of(name: str) -> str:
    """ "sevens", "sixes"; what ends otherwise in English is given in the config."""
    return f"{name}es" if name.endswith(_HISSING) else f"{name}s"
