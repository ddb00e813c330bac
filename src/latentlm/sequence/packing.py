"""Which pieces of which documents make which row: weighted mixing and best-fit packing, planned from lengths alone.

    lengths of all pieces, weights ─mix▶ an endless order of pieces ─best fit, window by window▶ rows of max_length

The law that everything else rests on: **row r is a pure function of (lengths, weights, max_length, seed, r)**. A
resumed run, any number of data workers and any rank work the plan out anew and take their own rows of it; nothing is
saved, nothing repeated, nothing lost. Only lengths are looked at, so that skipping ahead reads no data.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from latentlm.nn.keyed_noise import combine_keys

PIECES_PER_WINDOW = 1024
"""Pieces that are packed together: more of them waste less and mix over a longer stretch."""

_ORDER_STREAM = 0x0DE5
_ROW_STREAM = 0x0DE6


class PlannedPiece(NamedTuple):
    """One piece of a document in a row."""

    source: int
    piece: int
    """Index into the pieces of its source."""
    epoch: int
    """How often its source was gone through before."""


@dataclass(frozen=True)
class PackingReport:
    """What a stretch of the plan holds.

    Attributes:
        num_rows: Rows.
        num_tokens: By source, padding excluded.
        num_pieces: By source.
        waste: Share of positions that are padding.
    """

    num_rows: int
    num_tokens: tuple[int, ...]
    num_pieces: tuple[int, ...]
    waste: float


class PackingPlan:
    """Rows of pieces, in order, for ever.

    The next piece always comes from the source that is furthest behind its share of tokens, so that after every few
    thousand tokens the mixture holds its weights. Each epoch of a source has a permutation of its own.

    Args:
        lengths: Tokens of every piece, by source.
        weights: Share of tokens that each source is to have, up to a common factor.
        max_length: Tokens of a row.
        seed: Of the order.
        names: Of the sources, for error messages; None calls them by their numbers.

    Raises:
        ValueError: If a source is empty, a weight is not positive, or a piece does not fit into a row.
    """

    def __init__(
        self,
        lengths: Sequence[np.ndarray],
        weights: Sequence[float],
        *,
        max_length: int,
        seed: int,
        names: Sequence[str] | None = None,
    ) -> None:
        if not lengths or len(lengths) != len(weights):
            raise ValueError(f"{len(weights)} weights were given for {len(lengths)} sources")
        names = names or [str(number) for number in range(len(lengths))]
        for name, of_source, weight in zip(names, lengths, weights, strict=True):
            if not len(of_source):
                raise ValueError(f"source {name} has no document")
            if not (weight > 0 and np.isfinite(weight)):
                raise ValueError(f"source {name} has the weight {weight}; leave it out, or give a positive one")
            if int(of_source.max()) > max_length:
                raise ValueError(f"source {name} has a piece of {int(of_source.max())} tokens, a row {max_length}")
        self._lengths = [of_source.tolist() for of_source in lengths]
        self._shares = [weight / sum(weights) for weight in weights]
        self._max_length = max_length
        self._seed = seed
        self._restart()

    def rows(self, start: int, stop: int) -> list[list[PlannedPiece]]:
        """Rows `start` to `stop` - 1. Going forward is cheap, going back starts over."""
        if start < self._first_row:
            self._restart()
        while self._first_row + len(self._rows) <= start:
            self._next_window()
        rows = []
        for number in range(start, stop):
            while number >= self._first_row + len(self._rows):
                self._next_window()
            rows.append(self._rows[number - self._first_row])
        return rows

    def report(self, num_rows: int) -> PackingReport:
        """Tokens, pieces and waste of the first rows of the plan."""
        tokens, pieces = [0] * len(self._lengths), [0] * len(self._lengths)
        for row in self.rows(0, num_rows):
            for source, piece, _ in row:
                tokens[source] += self._lengths[source][piece]
                pieces[source] += 1
        waste = 1 - sum(tokens) / (num_rows * self._max_length)
        return PackingReport(num_rows, tuple(tokens), tuple(pieces), waste)

    def _restart(self) -> None:
        self._first_row = 0
        self._rows: list[list[PlannedPiece]] = []
        self._window = -1
        self._taken = [0] * len(self._lengths)  # pieces
        self._tokens = [0] * len(self._lengths)
        self._orders: dict[int, tuple[int, list[int]]] = {}  # source: (epoch, permutation)

    def _next_window(self) -> None:
        self._first_row += len(self._rows)
        self._window += 1
        pieces = [self._next_piece() for _ in range(PIECES_PER_WINDOW)]
        packed = pack([self._lengths[piece.source][piece.piece] for piece in pieces], self._max_length)
        # Best fit takes long pieces first; the rows of a window are put out of that order again.
        shuffled = _permutation(len(packed), self._seed, _ROW_STREAM, self._window)
        self._rows = [[pieces[index] for index in packed[row]] for row in shuffled]

    def _next_piece(self) -> PlannedPiece:
        total = sum(self._tokens) + 1
        behind = [share * total - tokens for share, tokens in zip(self._shares, self._tokens, strict=True)]
        source = behind.index(max(behind))
        epoch, offset = divmod(self._taken[source], len(self._lengths[source]))
        if self._orders.get(source, (-1,))[0] != epoch:
            order = _permutation(len(self._lengths[source]), self._seed, _ORDER_STREAM, source, epoch)
            self._orders[source] = (epoch, order)
        piece = self._orders[source][1][offset]
        self._taken[source] += 1
        self._tokens[source] += self._lengths[source][piece]
        return PlannedPiece(source, piece, epoch)


def _permutation(size: int, *keys: int) -> list[int]:
    """Indices sorted by a hash, hence the same on every machine and library version."""
    return torch.argsort(combine_keys(*keys, torch.arange(size)), stable=True).tolist()


def pack(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Best-fit decreasing: indices of the documents of every row, no row longer than `max_length`.

    Raises:
        ValueError: If a document is longer than a row.
    """
    open_rows: list[tuple[int, int]] = []  # (free space, row), sorted: the best fit is found by bisection
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        if length > max_length:
            raise ValueError(f"document {index} has {length} tokens but a row holds {max_length}; split it first")
        place = bisect.bisect_left(open_rows, (length, 0))
        if place < len(open_rows):
            space, best = open_rows.pop(place)
        else:
            space, best = max_length, len(rows)
            rows.append([])
        rows[best].append(index)
        bisect.insort(open_rows, (space - length, best))
    return rows
