"""What training on documents of text and pictures shares: sources, packing, encoding, dropped conditions.

    rows of RawPiece ─prepare▶ rows of Document (text ids; latents or codes of pictures) ─lay_out▶ the model's batch

LatentLM and the models it is compared with on documents differ in `lay_out` and `model_losses` alone.

Shapes: C channels, H height, W width of a picture.
"""

import itertools
import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentlm.data.datasets import Part
from latentlm.data.documents import (
    DocumentDataConfig,
    DocumentSource,
    RawImage,
    StoredCodes,
    StoredLatents,
    StoredMedium,
    open_documents,
)
from latentlm.data.documents.composed import ComposedDataConfig, open_composed
from latentlm.data.images import fitted_size, image_shape, load_image, load_image_of_any_shape
from latentlm.data.loader import load_numbered
from latentlm.data.records import BadRecord
from latentlm.generation.pipeline_folder import AnyImageTokenizer, load_image_tokenizer
from latentlm.generation.requests import PartEvent
from latentlm.nn.keyed_noise import combine_keys, keyed_uniform
from latentlm.pictures import picture_grid
from latentlm.sequence import CodePart, Document, IdsPart, LatentPart, LatentSlot, PackingPlan, PackingReport
from latentlm.tokenizers.base import Posterior
from latentlm.tokenizers.text import StoredTextTokenizer, TextTokenizerConfig, open_text_tokenizer
from latentlm.training import distributed
from latentlm.training.document_batches import DocumentBatches, DocumentPieces, PictureReader, RawPiece
from latentlm.training.objective import Counts, Objective
from latentlm.training.optim import OptimConfig, OptimizerGroups, parameter_groups
from latentlm.training.speech_documents import AnySpeechTokenizer, SpeechSourceConfig, open_speech_documents
from latentlm.training.trainer import TrainerConfig

# Streams of the keyed noise of one step.
LATENT_STREAM = 11
DROPOUT_STREAM = 12
MODEL_STREAM = 13

HELD_OUT_SEED = -1
"""Of the held-out loss's noise; the seeds of runs are not negative."""
NUM_HELD_OUT_ROWS = 256
_ROWS_OF_REPORT = 1024
_GRID_PICTURES = 16

_log = logging.getLogger(__name__)


AnyDocumentConfig = DocumentDataConfig | ComposedDataConfig


@dataclass(frozen=True, kw_only=True)
class DocumentSourceConfig:
    """One source of the mixture: files, documents composed from labelled pictures, or recordings."""

    data: DocumentDataConfig | None = None
    """Files, and how their records become documents."""
    composed: ComposedDataConfig | None = None
    """Labelled pictures, and what is asked and said of them."""
    speech: SpeechSourceConfig | None = None
    """Recordings, and what documents are made of them."""
    weight: float = 1.0
    """Share of the mixture's tokens, up to a common factor."""

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.data, self.composed, self.speech)) != 1:
            raise ValueError(
                "a source is either data (files), composed (from labelled pictures) or speech (recordings); give one"
            )
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise ValueError(f"weight is {self.weight}; leave the source out, or give a positive one")

    @property
    def settings(self) -> AnyDocumentConfig | SpeechSourceConfig:
        """Whichever is given."""
        chosen = self.data or self.composed or self.speech
        assert chosen is not None, "checked above"
        return chosen


@dataclass(frozen=True, kw_only=True)
class DocumentRecipe:
    """A model of documents; the recipe of each kind adds `model` and `generation`."""

    kind: str
    """Which model."""
    sources: dict[str, DocumentSourceConfig]
    """What it is trained on, by names that the log uses. The paper mixes text, pairs and interleaved as 2:1:1."""
    text_tokenizer: TextTokenizerConfig = field(default_factory=TextTokenizerConfig)
    """Text to ids; bytes unless another one is named."""
    tokenizer: str | None = None
    """Folder of the trained image tokenizer (its run's `model` folder); usually given on the command line. null for
    text alone."""
    max_length: int = 512
    """Tokens of a row; longer documents are cut, shorter ones packed side by side."""
    drop_cond_prob: float = 0.1
    """Share of documents that are reduced to one of their pictures, for classifier-free guidance: without what stands
    before it, its condition, or behind it, which may speak of what is gone. One that comes first loses nothing."""
    optim: OptimConfig
    """AdamW and its schedule."""
    trainer: TrainerConfig
    """Steps, rows of a batch, precision, checkpoints."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources is empty: name at least one")
        if any("/" in name for name in self.sources):
            raise ValueError("names of sources must not hold a slash: they stand behind one in the log")
        if not 0 <= self.drop_cond_prob < 1:
            raise ValueError(f"drop_cond_prob is {self.drop_cond_prob}; it must lie in [0, 1)")
        if self.max_length < 2:
            raise ValueError(f"max_length is {self.max_length}; a row needs two tokens at least")


@dataclass(frozen=True, eq=False)
class OpenedDocuments:
    """What a recipe's data and tokenizers come to.

    Attributes:
        batches: For training.
        held_out: Opens batches of the validation parts; None if nothing is held out.
        text_tokenizer: Of all sources.
        tokenizer: Of pictures; None without.
        report: Of the first rows of the plan.
    """

    batches: DocumentBatches
    held_out: Callable[[], Iterable[Mapping[str, Any]]] | None
    text_tokenizer: StoredTextTokenizer
    tokenizer: AnyImageTokenizer | None
    report: PackingReport


class DocumentObjective(Objective):
    """Rows of pieces to losses.

    Args:
        model: What is trained.
        tokenizer: Frozen; encodes pictures. None for a model of text alone.
        optim: AdamW and its schedule.
        drop_cond_prob: Share of documents that are reduced to one of their pictures; see `DocumentRecipe`.
        max_length: Tokens of a row.
        group_names: Names of the sources.
        held_out: Opens batches that are not trained on, for the held-out losses; None for none.
    """

    text_tokenizer: StoredTextTokenizer
    """Of all documents; set by the objectives of each kind."""

    def __init__(
        self,
        model: Any,
        tokenizer: AnyImageTokenizer | None,
        *,
        optim: OptimConfig,
        drop_cond_prob: float,
        max_length: int,
        group_names: Sequence[str],
        held_out: Callable[[], Iterable[Mapping[str, Any]]] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.frozen_children = () if tokenizer is None else ("tokenizer",)
        self.tokenizer = None if tokenizer is None else tokenizer.requires_grad_(False).eval()
        self.optim = optim
        self.drop_cond_prob = drop_cond_prob
        self.max_length = max_length
        self.group_names = tuple(group_names)
        self.held_out = held_out

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @abstractmethod
    def encode(self, pictures: Tensor, noise_seed: int, keys: Tensor) -> Tensor:
        """Tokens of pictures [B, C, H, W] in [-1, 1]: [B, N, ...]. Called without gradients, in float32."""

    @abstractmethod
    def lay_out(self, rows: list[list[RawPiece]], tokens: Mapping[int, Sequence[Tensor]], noise_seed: int) -> Any:
        """The model's batch; called without gradients.

        Args:
            rows: Pieces, conditions dropped already.
            tokens: Key of a piece to the tokens of its pictures, by the `raw` of their slots.
            noise_seed: Of this step.
        """

    @abstractmethod
    def loss_counts(self, batch: Any) -> Counts:
        """Of a batch from `lay_out`; see `Objective.counts`."""

    @abstractmethod
    def model_losses(self, batch: Any, totals: Counts | None) -> dict[str, Tensor]:
        """Named losses of a batch from `lay_out`, `total` among them; None as totals means the batch's own counts."""

    @abstractmethod
    def noised_text_losses(self, batch: Any, noise_level: float) -> dict[str, Tensor]:
        """`lm` and `lm/<source>` of a batch from `lay_out` whose pictures are read noised; for evaluation.

        Args:
            batch: With pictures as latents.
            noise_level: Share of the way from data (0, clean) to noise (1) along the model's own schedule.

        Raises:
            ValueError: If the model's pictures are no latents, or the level is no share.
        """

    @abstractmethod
    def pipeline(self) -> Any:
        """Model and tokenizers as users will hold them, in evaluation mode."""

    def save_pretrained(self, folder: Path) -> None:
        """A pipeline folder: model, tokenizers and sampling defaults."""
        training = self.model.training
        self.pipeline().save_pretrained(folder)
        self.model.train(training)

    @torch.no_grad()
    def unprompted_pictures(self, *, seed: int) -> Tensor:
        """A grid of pictures that are drawn after nothing at all; for models whose pictures are of one size."""
        assert self.tokenizer is not None
        training = self.model.training
        pipeline = self.pipeline()
        requests = pipeline.requests([""] * _GRID_PICTURES, images=1, max_new_tokens=0, seed=seed)
        parts = [event.part for event in pipeline.events(requests) if isinstance(event, PartEvent)]
        tokens = [
            part.codes if isinstance(part, CodePart) else part.latents
            for part in parts
            if isinstance(part, CodePart | LatentPart)
        ]
        self.model.train(training)
        return picture_grid(self.tokenizer.decode(torch.stack(tokens)))

    def optimizer_groups(self) -> dict[str, OptimizerGroups]:
        """One AdamW over what is trained of the model."""
        return {"model": OptimizerGroups(self.optim, parameter_groups([self.model], self.optim))}

    def ema_modules(self) -> dict[str, nn.Module]:
        """The model."""
        return {"model": self.model}

    @torch.no_grad()
    def prepare(self, raw_batch: Mapping[str, Any], *, step: int, seed: int) -> Any:
        """Drop conditions, encode pictures with fresh noise, lay out rows.

        Args:
            raw_batch: `rows`, from `DocumentBatches`.
            step: From 0.
            seed: The run's.
        """
        step_seed = int(combine_keys(seed, step))
        pieces = [piece for row in raw_batch["rows"] for piece in row]
        drops = self._drops(pieces, int(combine_keys(step_seed, DROPOUT_STREAM)))
        dropped = {id(piece): without_condition(piece, number) for piece, number in zip(pieces, drops, strict=True)}
        rows = [[dropped[id(piece)] for piece in row] for row in raw_batch["rows"]]
        kept = [piece for row in rows for piece in row]
        tokens = self._encode_all(kept, int(combine_keys(step_seed, LATENT_STREAM)))
        return self.lay_out(rows, tokens, int(combine_keys(step_seed, MODEL_STREAM)))

    def _drops(self, pieces: Sequence[RawPiece], seed: int) -> list[int | None]:
        """For each piece the medium to which it is reduced, or None."""
        keys = torch.tensor([piece.key for piece in pieces])
        uniforms = keyed_uniform(seed, keys, (2,)).tolist()
        chosen = [
            int(which * len(piece.media)) if piece.media and chance < self.drop_cond_prob else None
            for piece, (chance, which) in zip(pieces, uniforms, strict=True)
        ]
        return [
            number if number is not None and self._is_conditioned(piece, number) else None
            for piece, number in zip(pieces, chosen, strict=True)
        ]

    def _is_conditioned(self, piece: RawPiece, number: int) -> bool:
        """Whether more than begin-of-text stands before a medium."""
        before = piece.segments[: _place_of(piece, number)]
        return any(
            isinstance(part, LatentSlot) or any(token != self.text_tokenizer.bos_id for token in part.ids)
            for part in before
        )

    def _encode_all(self, pieces: Sequence[RawPiece], seed: int) -> dict[int, list[Tensor]]:
        """Key of a piece to its media's tokens."""
        alike: dict[tuple[Any, ...], list[tuple[RawPiece, int]]] = {}
        for piece in pieces:
            for number, medium in enumerate(piece.media):
                alike.setdefault(_form(medium), []).append((piece, number))
        tokens: dict[int, dict[int, Tensor]] = {piece.key: {} for piece in pieces}
        for places in alike.values():
            media = [piece.media[number] for piece, number in places]
            keys = torch.stack([combine_keys(piece.key, number) for piece, number in places]).to(self.device)
            # float32 even inside autocast: the tokenizer is small next to the model, and its latents are targets.
            with torch.autocast(self.device.type, enabled=False):
                encoded = self._encode_alike(media, seed, keys)
            for (piece, number), of_medium in zip(places, encoded.cpu(), strict=True):
                tokens[piece.key][number] = of_medium
        return {key: [of_piece[number] for number in range(len(of_piece))] for key, of_piece in tokens.items()}

    def _encode_alike(self, media: Sequence[Tensor | StoredMedium], seed: int, keys: Tensor) -> Tensor:
        """Tokens of media of one form."""
        codes = [medium for medium in media if isinstance(medium, StoredCodes)]
        if codes:
            return self.take_codes(codes[0].modality, torch.stack([medium.codes for medium in codes]))
        stored = [medium for medium in media if isinstance(medium, StoredLatents)]
        if not stored:
            pixels = torch.stack([medium for medium in media if isinstance(medium, Tensor)]).to(self.device)
            return self.encode(pixels.float().div_(127.5).sub_(1.0), seed, keys)
        mean = torch.stack([medium.mean for medium in stored]).to(self.device)
        log_stds = [medium.log_std for medium in stored if medium.log_std is not None]
        posterior = Posterior(mean, torch.stack(log_stds).to(self.device) if log_stds else None)
        return self.sample_stored(stored[0].modality, posterior, seed, keys)

    def sample_stored(self, modality: str, posterior: Posterior, noise_seed: int, keys: Tensor) -> Tensor:
        """Latents of media that were encoded beforehand, [B, n, C]; for models that take such.

        Raises:
            ValueError: If the model takes none.
        """
        raise ValueError(f"a document holds {modality}, which a '{self.kind}' does not read")

    def take_codes(self, modality: str, codes: Tensor) -> Tensor:
        """Codes [B, n, Q] of media that were encoded beforehand; for models that take such.

        Raises:
            ValueError: If the model takes none.
        """
        raise ValueError(f"a document holds codes of {modality}, which a '{self.kind}' does not read")

    def counts(self, batch: Any) -> Counts:
        """What each loss of the model is a mean over."""
        return self.loss_counts(batch)

    def losses(self, batch: Any, *, step: int, totals: Counts) -> dict[str, dict[str, Tensor]]:
        """The model's losses."""
        return {"model": self.model_losses(batch, totals)}

    def evaluations(self) -> Sequence[Callable[[Objective, int], Mapping[str, float | int]]]:
        """Losses on held-out documents, by source."""
        return () if self.held_out is None else (self._held_out_losses,)

    @torch.no_grad()
    def _held_out_losses(self, objective: Objective, step: int) -> dict[str, float]:
        """Mean losses over the held-out rows, with the same noise at every call, so that calls compare."""
        assert self.held_out is not None
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        totals: list[float] = []
        drop_cond_prob, self.drop_cond_prob = self.drop_cond_prob, 0.0
        try:
            for raw_batch in self.held_out():
                batch = self.prepare(raw_batch, step=0, seed=HELD_OUT_SEED)
                of_batch = self.loss_counts(batch)
                losses = self.model_losses(batch, None)
                totals.append(float(losses["total"]))
                for name, loss in losses.items():
                    if name != "total":
                        count = float(of_batch[name])
                        sums[name] = sums.get(name, 0.0) + count * float(loss)
                        counts[name] = counts.get(name, 0.0) + count
        finally:
            self.drop_cond_prob = drop_cond_prob
        means = {name: sums[name] / counts[name] for name in sums if counts[name]}
        means["total"] = sum(totals) / len(totals)  # batches are of one size
        return {f"held_out/{name}": value for name, value in means.items()}


def without_condition(piece: RawPiece, number: int | None) -> RawPiece:
    """A piece reduced to its medium `number`; None leaves it whole.

    It begins as a document does, so that it looks like what guidance's unconditional stream reads. Nothing follows:
    the answer to "How many are sevens?" would be wrong after one of several pictures, and ", then a seven" would be
    taught as the beginning of a caption.
    """
    if number is None:
        return piece
    slot = piece.segments[_place_of(piece, number)]
    assert isinstance(slot, LatentSlot)
    return replace(piece, segments=(replace(slot, raw=0),), media=(piece.media[number],), begins_anew=True)


def _place_of(piece: RawPiece, number: int) -> int:
    """Where the medium `number` stands among a piece's segments."""
    return next(i for i, part in enumerate(piece.segments) if isinstance(part, LatentSlot) and part.raw == number)


def document_of(
    piece: RawPiece, tokens: Sequence[Tensor], *, part_class: type[LatentPart | CodePart] = LatentPart
) -> Document:
    """A piece with the tokens of its media, as a document.

    Args:
        piece: Any.
        tokens: Of its media, by the `raw` of their slots.
        part_class: What they are.
    """
    parts = tuple(
        part if isinstance(part, IdsPart) else part_class(part.modality, tokens[part.raw], part.grid)
        for part in piece.segments
    )
    # Its end-of-text ids are among the segments, unless it was reduced to one medium.
    return Document(parts, key=piece.key, begins=piece.begins_anew, ends=False, group=piece.group)


def _form(medium: Tensor | StoredMedium) -> tuple[Any, ...]:
    """Media of the same form are encoded together."""
    if isinstance(medium, StoredMedium):
        return type(medium), medium.modality, medium.num_tokens
    return tuple(medium.shape)


def open_tokenizers(recipe: DocumentRecipe) -> tuple[StoredTextTokenizer, AnyImageTokenizer | None]:
    """The tokenizers of text and of pictures that a recipe names; None for no pictures.

    Raises:
        ValueError: If one is missing or damaged.
    """
    text_tokenizer = open_text_tokenizer(recipe.text_tokenizer)
    return text_tokenizer, None if recipe.tokenizer is None else load_image_tokenizer(recipe.tokenizer)


def open_recipe_documents(
    recipe: DocumentRecipe,
    *,
    tokenizers: tuple[StoredTextTokenizer, AnyImageTokenizer | None] | None = None,
    max_grid_side: int | None = None,
    speech_tokenizer: AnySpeechTokenizer | None = None,
    progress: bool = True,
) -> OpenedDocuments:
    """Open the sources and tokenizers of a recipe and plan its rows.

    Args:
        recipe: Sources, tokenizers, lengths.
        tokenizers: The recipe's, for callers that have opened them already.
        max_grid_side: Longest side in latents of pictures that keep their shape and say it; None makes all alike.
        speech_tokenizer: Encodes recordings.
        progress: Show progress bars while lengths are counted.

    Raises:
        ValueError: If data or tokenizers are missing, or do not fit together.
    """
    text_tokenizer, tokenizer = tokenizers or open_tokenizers(recipe)
    opener = _Opener(recipe, text_tokenizer, tokenizer, max_grid_side, speech_tokenizer)
    sources = [opener.pieces(name, "train", progress=progress) for name in recipe.sources]
    weights = [source.weight for source in recipe.sources.values()]
    plan = PackingPlan(
        [source.lengths for source in sources],
        weights,
        max_length=recipe.max_length,
        seed=recipe.trainer.seed,
        names=list(recipe.sources),
    )
    report = plan.report(_ROWS_OF_REPORT)
    total = sum(report.num_tokens)
    shares = ", ".join(f"{name} {n / total:.1%}" for name, n in zip(recipe.sources, report.num_tokens, strict=True))
    _log.info("rows of %d tokens: %s of the tokens; %.1f%% padding", recipe.max_length, shares, 100 * report.waste)
    batches = DocumentBatches(
        sources,
        plan,
        batch_size=recipe.trainer.batch_size,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        max_bad_records=sum(source.settings.max_bad_records for source in recipe.sources.values()),
    )
    return OpenedDocuments(batches, _held_out(opener), text_tokenizer, tokenizer, report)


def objective_options(recipe: DocumentRecipe, opened: OpenedDocuments) -> dict[str, Any]:
    """What every `DocumentObjective` takes of a recipe and its data."""
    return {
        "optim": recipe.optim,
        "drop_cond_prob": recipe.drop_cond_prob,
        "max_length": recipe.max_length,
        "group_names": list(recipe.sources),
        "held_out": opened.held_out,
    }


def make_document_loader(batches: DocumentBatches, trainer: TrainerConfig) -> Callable[[int], Iterator[Any]]:
    """What a trainer takes: number of the first batch to endless batches."""
    return lambda start: load_numbered(batches, batches, start_batch=start, num_workers=trainer.num_workers)


@dataclass(frozen=True, eq=False)
class _Opener:
    """Opens the sources of a recipe with its tokenizers."""

    recipe: DocumentRecipe
    text_tokenizer: StoredTextTokenizer
    tokenizer: AnyImageTokenizer | None
    max_grid_side: int | None
    speech_tokenizer: AnySpeechTokenizer | None

    def pieces(self, name: str, part: Part, *, progress: bool) -> DocumentPieces:
        """One part of a source as pieces that fit a row. Errors as in `open_recipe_documents`."""
        settings = self.recipe.sources[name].settings
        if isinstance(settings, SpeechSourceConfig):
            documents, reader = self._recordings(name, settings, part, progress), _NO_PICTURES
        else:
            data = with_size(name, settings, self.tokenizer)
            documents = open_any_documents(data, part=part)
            reader = picture_reader(data, self.tokenizer, max_grid_side=self.max_grid_side)
        return DocumentPieces(
            documents,
            self.text_tokenizer,
            reader,
            max_length=self.recipe.max_length,
            group=list(self.recipe.sources).index(name),
            progress=f"counting tokens of {name}" if progress else None,
        )

    def _recordings(self, name: str, settings: SpeechSourceConfig, part: Part, progress: bool) -> DocumentSource:
        if self.speech_tokenizer is None:
            raise ValueError(
                f"sources.{name} holds recordings, but there is no tokenizer of speech: recipes of kinds that read "
                "speech name it (--speech_tokenizer RUN/model)"
            )
        bar = f"encoding {name}" if progress else None
        return open_speech_documents(settings, self.speech_tokenizer, part=part, progress=bar)


def _held_out(opener: _Opener) -> Callable[[], Iterable[Mapping[str, Any]]] | None:
    """Every held-out source has the same share: the losses are told apart by source."""
    recipe = opener.recipe
    names = [name for name, source in recipe.sources.items() if source.settings.validation_ratio > 0]
    if len(names) < len(recipe.sources):
        return None
    sources = [opener.pieces(name, "validation", progress=False) for name in names]
    plan = PackingPlan(
        [source.lengths for source in sources],
        [1.0] * len(sources),
        max_length=recipe.max_length,
        seed=0,
        names=[f"{name} (held out)" for name in names],
    )
    size = min(recipe.trainer.batch_size, NUM_HELD_OUT_ROWS)
    batches = DocumentBatches(sources, plan, batch_size=size)
    return lambda: itertools.islice(load_numbered(batches, batches), NUM_HELD_OUT_ROWS // size)


def open_any_documents(data: AnyDocumentConfig, *, part: Part) -> DocumentSource:
    """One part of files or of composed documents; errors as in `open_documents`."""
    return open_documents(data, part=part) if isinstance(data, DocumentDataConfig) else open_composed(data, part=part)


def with_size(name: str, data: AnyDocumentConfig, tokenizer: AnyImageTokenizer | None) -> AnyDocumentConfig:
    """Pictures as the tokenizer takes them, whatever their files hold."""
    if tokenizer is None:
        return data
    size, num_channels = tokenizer.config.image_size, tokenizer.config.num_channels
    if data.image_size not in (None, size):
        raise ValueError(
            f"the tokenizer was trained on pictures of {size} x {size} but the image_size of sources.{name} is "
            f"{data.image_size}; leave it out"
        )
    return replace(data, image_size=size, num_channels=num_channels)


def picture_reader(
    data: AnyDocumentConfig, tokenizer: AnyImageTokenizer | None, *, max_grid_side: int | None = None
) -> PictureReader:
    """How pictures of these data are opened for this tokenizer; without one, a picture is a bad record.

    Args:
        data: Limits, and how pictures are fitted.
        tokenizer: What they are for.
        max_grid_side: Longest side in latents of pictures that keep their shape; None makes all alike.
    """

    def of_one_size(picture: RawImage) -> Tensor:
        assert data.image_size is not None
        pixels = load_image(
            picture.data,
            picture.name,
            image_size=data.image_size,
            num_channels=data.num_channels,
            resize=data.resize,
            max_pixels=data.max_pixels,
        )
        return torch.from_numpy(pixels.copy()).movedim(-1, 0)  # Pillow's memory is read-only

    if tokenizer is None:
        return PictureReader(of_one_size, _refuse_picture, says_size=False)
    config = tokenizer.config
    if max_grid_side is None:
        one_grid = tokenizer.grid(config.image_size, config.image_size)
        return PictureReader(of_one_size, lambda picture: one_grid, says_size=False)
    patch = config.patch_size
    bounds = {"max_side": max_grid_side * patch, "multiple": patch}

    def of_its_shape(picture: RawImage) -> Tensor:
        pixels = load_image_of_any_shape(
            picture.data, picture.name, num_channels=data.num_channels, max_pixels=data.max_pixels, **bounds
        )
        return torch.from_numpy(pixels.copy()).movedim(-1, 0)

    def grid(picture: RawImage) -> tuple[int, int]:
        shape = image_shape(picture.data, picture.name, max_pixels=data.max_pixels)
        width, height = fitted_size(*shape, **bounds)
        return tokenizer.grid(height, width)

    return PictureReader(of_its_shape, grid, says_size=True)


def _refuse_picture(picture: RawImage) -> tuple[int, int]:
    raise BadRecord(picture.name, "the document has a picture, but the recipe names no tokenizer of pictures")


def _refuse_to_read(picture: RawImage) -> Tensor:
    raise BadRecord(picture.name, "a source of recordings holds no pictures")


_NO_PICTURES = PictureReader(_refuse_to_read, _refuse_picture, says_size=False)
