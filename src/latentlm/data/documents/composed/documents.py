"""Composed documents: one pure function of (pools, config, part, index), and where a document's answer begins."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from latentlm.data.datasets import Part, open_images, resolve_path
from latentlm.data.documents.composed.config import ComposedDataConfig, PoolConfig
from latentlm.data.documents.composed.pools import MAX_OF_ONE_CLASS, Dealer, Pool, plural_of
from latentlm.data.documents.composed.tasks import INVENTED, TASKS
from latentlm.data.documents.document import DocumentSource, RawDocument, RawImage, RawPart
from latentlm.data.images import load_image
from latentlm.data.records import DataError, Source
from latentlm.nn.keyed_noise import combine_keys

_PART_STREAMS: dict[Part, int] = {"train": 1, "validation": 2, "test": 3}
_FINGERPRINT_VERSION = 1  # counted up when the same pools and config would make other documents


class ComposedDocuments(DocumentSource):
    """The documents of one part.

    Document `index` does not depend on how many there are: a longer data set begins with the documents of a shorter.

    Args:
        pools: Pictures of this part.
        config: Tasks, numbers of documents, seed.
        part: Which of the numbers, and which stream of draws.
    """

    def __init__(self, pools: Sequence[Pool], config: ComposedDataConfig, part: Part) -> None:
        self.pools = tuple(pools)
        self.rejected = tuple(bad for pool in pools for bad in pool.source.rejected)
        self._tasks = dict(config.tasks)
        self._seed = int(combine_keys(config.seed, _PART_STREAMS[part]))
        self._num_documents = config.num_documents if part == "train" else config.num_held_out_documents
        self._part = part

    def __len__(self) -> int:
        return self._num_documents

    def __getitem__(self, index: int) -> RawDocument:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} documents")
        key = int(combine_keys(self._seed, index))
        dealer = Dealer(self.pools, key)
        task = dealer.pick_weighted(self._tasks)
        return TASKS[task](dealer).document(task, key=key, name=f"composed {self._part} document {index} ({task})")

    def fingerprint(self) -> str:
        """See `DocumentSource.fingerprint`."""
        pools = [pool.fingerprint() for pool in self.pools]
        described = [_FINGERPRINT_VERSION, self._tasks, self._seed, self._num_documents, pools]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def open_composed(config: ComposedDataConfig, *, part: Part) -> ComposedDocuments:
    """Open the pools of one part and compose from them.

    `train` and `validation` divide each pool's pictures as `datasets.open_images` does; `test` takes each pool's own
    test pictures. No picture is in two parts.

    Raises:
        DataError: If a pool's data are missing, in no known format, without labels, or have no such part; if its labels
            go beyond its names, a class has too few pictures in this part, or a name stands for two classes.
        ImportError: If a format needs an extra; the message names it.
    """
    pools = [_open_pool(noun, pool, part) for noun, pool in config.pools.items()]
    counts = Counter(name.casefold() for pool in pools for name in pool.names)
    shared = sorted(name for name, count in counts.items() if count > 1)
    if shared:
        raise DataError(f"{', '.join(shared)}: the name of more than one class, so that no answer would be sure")
    if taken := sorted(counts.keys() & set(INVENTED)):
        raise DataError(f"{', '.join(taken)}: an invented name of the task few_shot; call the class otherwise")
    return ComposedDocuments(pools, config, part)


def _open_pool(noun: str, config: PoolConfig, part: Part) -> Pool:
    data = config.image_data()
    images = open_images(data, part=part)
    source = images.source
    if "label" not in source.fields:
        raise DataError(f"pools.{noun}: {config.path} has no labels to write about")
    names = tuple(config.names) or source.label_names
    if not all(name.strip() for name in names):
        raise DataError(f"pools.{noun}: a class has a blank name")
    own_path = config.test_path if part == "test" and config.test_path is not None else config.path
    return Pool(
        noun=noun,
        names=names,
        plurals=tuple(config.plurals) or tuple(map(plural_of, names)),
        source=source,
        records=_by_class(noun, source, images.indices, names, part),
        files=() if own_path is None or config.source == "digits" else (resolve_path(own_path),),
    )


def _by_class(
    noun: str, source: Source, indices: np.ndarray, names: Sequence[str], part: Part
) -> tuple[np.ndarray, ...]:
    """The places of each class's pictures, after a check that there are enough to compose any document."""
    labels = source.labels[indices]
    if labels.max() >= len(names):
        raise DataError(f"pools.{noun}: its labels go up to {labels.max()}, but there are {len(names)} names")
    if len(names) < 2:
        raise DataError(f"pools.{noun}: has one class alone, {names[0]!r}; questions need at least two")
    records = tuple(indices[labels == label] for label in range(len(names)))
    scarce = [
        f"{name} ({len(places)})" for name, places in zip(names, records, strict=True) if len(places) < MAX_OF_ONE_CLASS
    ]
    if scarce:
        raise DataError(
            f"pools.{noun}: a class needs {MAX_OF_ONE_CLASS} pictures in the part {part!r}, too few have "
            f"{', '.join(scarce)}; hold out another share (validation_ratio), or give data with more of them"
        )
    return records


def split_prompt(document: RawDocument) -> tuple[tuple[RawPart, ...], tuple[RawPart, ...]]:
    """What a composed document gives, and what is expected to follow; also after a way through JSON Lines.

    Returns:
        Prompt and answer. Joined, they are the document's parts, up to the seam inside a text.

    Raises:
        ValueError: If the document was not composed here.
    """
    if not {"answer_part", "answer_prefix"} <= document.fields.keys():
        raise ValueError(f"{document.name}: does not say where its answer begins; was it composed?")
    begins_at, prefix = document.fields["answer_part"], document.fields["answer_prefix"]
    prompt, answer = document.parts[:begins_at], document.parts[begins_at:]
    if not prefix:
        return prompt, answer
    seam = answer[0]
    if not isinstance(seam, str) or not seam.startswith(prefix):
        raise ValueError(f"{document.name}: part {begins_at} does not begin with {prefix!r}, as its fields say")
    return (*prompt, prefix), (seam.removeprefix(prefix), *answer[1:])


def fit_pictures(document: RawDocument, config: ComposedDataConfig) -> RawDocument:
    """The document with its pictures as uint8 [image_size, image_size, num_channels]; unchanged without an image_size.

    Raises:
        BadRecord: If a picture cannot be decoded or is too large.
    """
    size = config.image_size
    if size is None:
        return document

    def fitted(image: RawImage) -> RawImage:
        pixels = load_image(
            image.data,
            image.name,
            image_size=size,
            num_channels=config.num_channels,
            resize=config.resize,
            max_pixels=config.max_pixels,
        )
        return RawImage(pixels, image.name)

    parts = tuple(fitted(part) if isinstance(part, RawImage) else part for part in document.parts)
    return replace(document, parts=parts)
