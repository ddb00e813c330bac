"""From the frames of a CTC network to a text: the likeliest letters, or the likeliest string of known words.

Shapes: T frames, A classes (0 is the blank), V states of the word graph.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

BLANK = 0


def greedy_text(scores: Float[Tensor, "T A"], alphabet: str) -> str:
    """The likeliest class of each frame, repetitions and blanks removed (Graves et al. 2006, Section 3.2).

    Args:
        scores: Log-probabilities.
        alphabet: Characters of the classes from 1 on.
    """
    classes = scores.argmax(dim=-1).unique_consecutive().tolist()
    return " ".join("".join(alphabet[index - 1] for index in classes if index != BLANK).split())


class WordGraph:
    """Strings of any length of a few words, as a graph through which the likeliest path is found (Viterbi).

    Between two words the network writes a space; blanks may stand anywhere. As a person would who knows that digits are
    read out, "ne" is taken for "one" or "nine", whichever the frames fit better.

    Args:
        words: The only words there are.
        alphabet: Characters of the classes from 1 on; with a space.

    Raises:
        ValueError: If a word is empty or holds a space or another character.
    """

    _IDLE, _SPACE, _AFTER_SPACE, _TAIL = range(4)
    """Blanks before the first word; a space; blanks after it; blanks after a word."""

    def __init__(self, words: Sequence[str], alphabet: str) -> None:
        self._words = list(words)
        space = 1 + alphabet.index(" ")
        classes, arcs = [BLANK, space, BLANK, BLANK], [(state, state) for state in range(4)]
        arcs += [(self._TAIL, self._SPACE), (self._SPACE, self._AFTER_SPACE)]
        self._starts: dict[int, str] = {}
        ends = []
        for word in self._words:
            if not word or " " in word or set(word) - set(alphabet):
                raise ValueError(f"{word!r} is no word of the characters {alphabet!r}")
            first = len(classes)
            for place, character in enumerate(word):
                state = len(classes)
                arcs.append((state, state))
                classes.append(1 + alphabet.index(character))
                if place + 1 < len(word):
                    between = state + 1  # a blank, which twice the same letter needs and others may have
                    arcs += [(state, between), (between, between), (between, state + 2)]
                    arcs += [(state, state + 2)] if word[place + 1] != character else []
                    classes.append(BLANK)
            last = len(classes) - 1
            arcs += [(before, first) for before in (self._IDLE, self._SPACE, self._AFTER_SPACE)]
            arcs += [(last, self._TAIL), (last, self._SPACE)]
            self._starts[first] = word
            ends.append(last)
        self._classes = torch.tensor(classes)
        self._arcs = torch.full((len(classes), len(classes)), -math.inf)
        self._arcs[tuple(torch.tensor(arcs).T)] = 0.0  # (from, to)
        self._may_begin = _only([self._IDLE, *self._starts], len(classes))
        self._may_end = _only([self._IDLE, self._TAIL, *ends], len(classes))

    def likeliest_text(self, scores: Float[Tensor, "T A"]) -> str:
        """The words of the likeliest path; none where blanks alone are likelier than any word.

        Args:
            scores: Log-probabilities.
        """
        if len(scores) == 0:
            return ""
        emitted = scores[:, self._classes]  # (T, V)
        best = emitted[0].masked_fill(~self._may_begin, -math.inf)
        came_from = []
        for frame in emitted[1:]:
            reached, sources = (best[:, None] + self._arcs).max(dim=0)
            best = reached + frame
            came_from.append(sources)
        state = int(best.masked_fill(~self._may_end, -math.inf).argmax())
        path = [state]
        for sources in reversed(came_from):
            state = int(sources[state])
            path.append(state)
        path.reverse()
        entered = [now for before, now in zip([-1, *path], path, strict=False) if now != before]
        return " ".join(self._starts[state] for state in entered if state in self._starts)


def _only(states: Sequence[int], count: int) -> Bool[Tensor, " V"]:
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[list(states)] = True
    return chosen
