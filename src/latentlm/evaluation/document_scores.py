"""What is said of a model of documents: shares with their errors, likelihoods, captions, answers, switches."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentlm.evaluation.intervals import Interval, bootstrap_ratio
from latentlm.evaluation.scores_table import Columns, scores_table


@dataclass(frozen=True, kw_only=True)
class Share:
    """How many of some trials succeeded."""

    num: int
    """Trials."""
    share: float
    """In [0, 1]."""

    columns: ClassVar[Columns] = {
        "num": ("N", "d"),
        "share": ("share ↑", ".1%"),
        "standard_error": ("standard error", ".1%"),
    }

    @staticmethod
    def of(successes: Sequence[bool]) -> "Share":
        """The share of those that are True.

        Raises:
            ValueError: If there are none at all.
        """
        if not successes:
            raise ValueError("a share of no trials means nothing; measure at least one")
        return Share(num=len(successes), share=sum(successes) / len(successes))

    @property
    def standard_error(self) -> float:
        """Binomial: sqrt(p (1 - p) / N)."""
        return math.sqrt(self.share * (1 - self.share) / self.num)

    @property
    def interval(self) -> Interval:
        """Over the trials."""
        successes = round(self.share * self.num)
        return bootstrap_ratio([1] * successes + [0] * (self.num - successes))

    def as_json(self) -> dict[str, Any]:
        """The interval's `estimate`, `low`, `high` and `num`."""
        return self.interval.as_json()


@dataclass(frozen=True, kw_only=True)
class LikelihoodScores:
    """Negative log-likelihood of some text in many documents."""

    num_documents: int
    num_targets: int
    """Tokens that were predicted, ends of text among them."""
    nats_per_token: float
    standard_error: float
    """Of `nats_per_token`, documents being drawn independently."""

    columns: ClassVar[Columns] = {
        "num_documents": ("documents", "d"),
        "num_targets": ("tokens", "d"),
        "nats_per_token": ("nats per token ↓", ".4f"),
        "standard_error": ("standard error", ".4f"),
        "perplexity": ("perplexity ↓", ".3f"),
    }

    @staticmethod
    def of(nll_nats: Float[Tensor, " N"], num_targets: Int[Tensor, " N"]) -> "LikelihoodScores":
        """Sum up documents.

        Args:
            nll_nats: Summed over the targets of each document.
            num_targets: Of each document.

        Raises:
            ValueError: If there are fewer than two documents, or nothing is predicted in them.
        """
        count, total = len(nll_nats), int(num_targets.sum())
        if count < 2 or total == 0:
            raise ValueError(f"{count} documents with {total} targets: a mean with an error needs two and some targets")
        mean = nll_nats.double().sum().item() / total
        # A ratio of two sums: its error is that of the residuals nll - mean · targets (Cochran 1977, Section 6.4).
        residuals = nll_nats.double() - mean * num_targets.double()
        error = math.sqrt(residuals.square().sum().item() * count / (count - 1)) / total
        return LikelihoodScores(num_documents=count, num_targets=total, nats_per_token=mean, standard_error=error)

    @property
    def perplexity(self) -> float:
        """exp(nats per token); infinite where that overflows."""
        try:
            return math.exp(self.nats_per_token)
        except OverflowError:
            return math.inf

    def as_json(self) -> dict[str, Any]:
        """Plain values by name, an infinite perplexity as None."""
        perplexity = self.perplexity
        return {**asdict(self), "perplexity": perplexity if math.isfinite(perplexity) else None}


@dataclass(frozen=True, kw_only=True)
class ChoiceScores:
    """How sure a model is of the right one among some texts about the same pictures."""

    likeliest: Share
    """The right one is likelier than every other."""
    nats: float
    """Mean of -log p(right one | one of the choices): 0 if it is always sure and right. Unlike the share it also tells
    models apart that are all mostly right, or all hardly better than chance."""
    nats_standard_error: float
    chance: float
    """Share of a guess."""
    chance_nats: float
    """Nats of a guess."""

    columns: ClassVar[Columns] = {
        "num": ("N", "d"),
        "share": ("likeliest ↑", ".1%"),
        "standard_error": ("standard error", ".1%"),
        "chance": ("chance", ".1%"),
        "nats": ("nats ↓", ".4f"),
        "nats_standard_error": ("standard error", ".4f"),
        "chance_nats": ("chance", ".4f"),
    }

    @staticmethod
    def of(nlls: Sequence[Float[Tensor, " _choices"]], right: Sequence[int]) -> "ChoiceScores":
        """From the nats of the choices.

        Args:
            nlls: Of each list of choices, up to what all of it share.
            right: Place of the right one in each.

        Raises:
            ValueError: If there are fewer than two lists.
        """
        if len(nlls) < 2:
            raise ValueError(f"{len(nlls)} choices: a mean with an error needs two")
        pairs = list(zip(nlls, right, strict=True))
        own = torch.stack([-(-of_one.double()).log_softmax(dim=0)[place] for of_one, place in pairs])
        others = [torch.cat([of_one[:place], of_one[place + 1 :]]) for of_one, place in pairs]
        chosen = [bool((of_one[place] < rest).all()) for (of_one, place), rest in zip(pairs, others, strict=True)]
        return ChoiceScores(
            # As likely as another one is not likelier: a model that sees nothing gets no point for the order.
            likeliest=Share.of(chosen),
            nats=own.mean().item(),
            nats_standard_error=own.std().item() / math.sqrt(len(own)),
            chance=sum(1 / len(of_one) for of_one in nlls) / len(nlls),
            chance_nats=sum(math.log(len(of_one)) for of_one in nlls) / len(nlls),
        )

    @property
    def num(self) -> int:
        """For tables."""
        return self.likeliest.num

    @property
    def share(self) -> float:
        """For tables."""
        return self.likeliest.share

    @property
    def standard_error(self) -> float:
        """Of the share, for tables."""
        return self.likeliest.standard_error

    def as_json(self) -> dict[str, Any]:
        """Plain values by name, the share with its interval."""
        return {
            "num": self.num,
            "share": self.likeliest.as_json(),
            "chance": self.chance,
            "nats": self.nats,
            "nats_standard_error": self.nats_standard_error,
            "chance_nats": self.chance_nats,
        }


@dataclass(frozen=True, kw_only=True)
class CaptioningScores:
    """Captions that a model wrote for pictures of known classes."""

    num_captions: int
    references_per_caption: float
    cider: float
    """CIDEr-D in [0, 10]; see `captions.cider`."""
    exact_match: Share
    """Share with the very words of a reference."""
    class_named: Share
    """Share that names the picture's class, and no other."""

    columns: ClassVar[Columns] = {
        "num_captions": ("captions", "d"),
        "references_per_caption": ("references each", ".1f"),
        "cider": ("CIDEr-D ↑", ".3f"),
        "exact_match_share": ("exact match ↑", ".1%"),
        "class_named_share": ("class named ↑", ".1%"),
        "class_named_error": ("standard error", ".1%"),
    }

    @property
    def exact_match_share(self) -> float:
        """For tables."""
        return self.exact_match.share

    @property
    def class_named_share(self) -> float:
        """For tables."""
        return self.class_named.share

    @property
    def class_named_error(self) -> float:
        """For tables."""
        return self.class_named.standard_error

    def as_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return {
            "num_captions": self.num_captions,
            "references_per_caption": self.references_per_caption,
            "cider": self.cider,
            "exact_match": self.exact_match.as_json(),
            "class_named": self.class_named.as_json(),
        }


@dataclass(frozen=True, kw_only=True)
class AnswerScores:
    """Accuracy of answers to questions about pictures, beside what it takes no eyes to reach."""

    model: Share
    blind: Share
    """The same model, asked with the pictures of another document of the same kind."""
    majority: Share | None = None
    """Always the most frequent training answer to questions of the kind; None where answers are new every time."""

    def as_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return {name: share.as_json() for name, share in self._rows().items()}

    def as_markdown(self) -> str:
        """A table with a row for model, blind model and majority."""
        return scores_table(self._rows())

    def _rows(self) -> dict[str, Share]:
        rows = {"model": self.model, "blind": self.blind}
        return rows if self.majority is None else {**rows, "majority": self.majority}


@dataclass(frozen=True, kw_only=True)
class SwitchingScores:
    """Whether a model changes between text and pictures where it should; every share is one of all prompts.

    A model that puts the end of a picture itself, by its length, closes in time whenever it opens: that is no merit.
    """

    opens: Share
    """The first thing that follows is of the right kind."""
    closes: Share
    """The first span is of the right kind and ends where it should: a picture after as many tokens as pictures have,
    a text by the model's own end of text or switch and not by the bound."""
    returns: Share
    """What follows the first span is what follows in such a document: text, or its end."""
    everything: Share
    """All three."""

    columns: ClassVar[Columns] = {
        "num": ("prompts", "d"),
        "opens_share": ("opens ↑", ".1%"),
        "closes_share": ("closes ↑", ".1%"),
        "returns_share": ("returns ↑", ".1%"),
        "everything_share": ("all three ↑", ".1%"),
    }

    @staticmethod
    def of(opens: Sequence[bool], closes: Sequence[bool], returns: Sequence[bool]) -> "SwitchingScores":
        """From one truth of each sort per prompt."""
        everything = [all(three) for three in zip(opens, closes, returns, strict=True)]
        return SwitchingScores(
            opens=Share.of(opens), closes=Share.of(closes), returns=Share.of(returns), everything=Share.of(everything)
        )

    @property
    def num(self) -> int:
        """Prompts."""
        return self.opens.num

    @property
    def opens_share(self) -> float:
        """For tables."""
        return self.opens.share

    @property
    def closes_share(self) -> float:
        """For tables."""
        return self.closes.share

    @property
    def returns_share(self) -> float:
        """For tables."""
        return self.returns.share

    @property
    def everything_share(self) -> float:
        """For tables."""
        return self.everything.share

    def as_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return {
            name: share.as_json()
            for name, share in (
                ("opens", self.opens),
                ("closes", self.closes),
                ("returns", self.returns),
                ("everything", self.everything),
            )
        }
