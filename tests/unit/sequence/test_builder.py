import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlm.nn.attention import attend
from latentlm.sequence import (
    IGNORE_LABEL,
    NUM_PERMANENT_IDS,
    PADDING_DOCUMENT,
    CodePart,
    Document,
    IdsPart,
    LabelPart,
    LatentPart,
    Part,
    SequenceBuilder,
    TextPart,
    VocabularyConfig,
    document_causal_mask,
)
from latentlm.sequence.batch import document_block_mask
from latentlm.tokenizers.text import ByteTokenizer

VOCABULARY = VocabularyConfig(num_text_ids=257, switch_tokens=True, num_classes=5)
DIMS = {"image": 4, "speech": 2}


@pytest.fixture
def builder() -> SequenceBuilder:
    return SequenceBuilder(VOCABULARY, list(DIMS), ByteTokenizer())


def latents(modality: str, count: int, value: float = 0.0) -> LatentPart:
    return LatentPart(modality, torch.arange(count * DIMS[modality], dtype=torch.float32).view(count, -1) + value)


def same(first: Part, second: Part) -> bool:
    if isinstance(first, LatentPart) and isinstance(second, LatentPart):
        return first.modality == second.modality and torch.equal(first.latents, second.latents)
    if isinstance(first, CodePart) and isinstance(second, CodePart):
        return first.modality == second.modality and torch.equal(first.codes, second.codes)
    return first == second


def assert_restored(builder: SequenceBuilder, document: Document) -> None:
    restored, expected = builder.restore(builder.build(document)), document.normal_form()
    assert (restored.key, restored.group) == (expected.key, expected.group)
    assert len(restored.parts) == len(expected.parts)
    assert all(same(first, second) for first, second in zip(restored.parts, expected.parts, strict=True))


parts = st.one_of(
    st.text(max_size=12).map(TextPart),
    st.one_of(st.none(), st.integers(0, 4)).map(LabelPart),
    st.tuples(st.sampled_from(list(DIMS)), st.integers(1, 5), st.integers(0, 9)).map(lambda x: latents(*x)),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(parts, max_size=8))
def test_restoring_undoes_building(document_parts: list[Part]) -> None:
    builder = SequenceBuilder(VOCABULARY, list(DIMS), ByteTokenizer())
    assert_restored(builder, Document(tuple(document_parts), key=3, group=2))


PICTURE, EMPTY = latents("image", 3), TextPart("")
CODED = CodePart("image", torch.tensor([3, 0, 15, 7]))


@pytest.mark.parametrize("picture", [PICTURE, CODED], ids=["latents", "codes"])
@pytest.mark.parametrize(
    "mix", ["", "e", "ee", "p", "pp", "epe", "pep", "tp", "pt", "tpt", "ptp", "tet", "epte", "tpep"]
)
def test_every_mix_of_texts_and_pictures_is_restored_in_its_normal_form(mix: str, picture: Part) -> None:
    vocabulary = VocabularyConfig(num_text_ids=257, switch_tokens=True, num_codes=16 if picture is CODED else 0)
    builder = SequenceBuilder(vocabulary, list(DIMS), ByteTokenizer())
    assert_restored(builder, Document(tuple({"e": EMPTY, "p": picture, "t": TextPart("ab")}[kind] for kind in mix)))


def test_the_normal_form_has_neither_empty_texts_nor_neighbouring_ones() -> None:
    a, b = TextPart("a"), TextPart("b")
    document = Document((EMPTY, a, EMPTY, b, PICTURE, EMPTY, PICTURE, b, EMPTY, a), key=5, begins=False, group=1)
    normal = document.normal_form()
    assert normal.parts == (TextPart("ab"), PICTURE, PICTURE, TextPart("ba"))
    assert (normal.key, normal.begins, normal.ends, normal.group) == (5, False, True, 1)
    assert normal.normal_form() == normal
    assert Document((EMPTY,)).normal_form().parts == ()


def test_switch_token_ids_are_permanent() -> None:
    # Part of the file format: checkpoints depend on these numbers.
    assert VOCABULARY.pad_id == 257
    assert [
        (VOCABULARY.begin_id(name), VOCABULARY.end_id(name)) for name in ("image", "speech", "video", "action")
    ] == [
        (258, 259),
        (260, 261),
        (262, 263),
        (264, 265),
    ]
    assert VOCABULARY.class_id(0) == 257 + NUM_PERMANENT_IDS == 268
    assert VOCABULARY.class_id(None) == 273
    assert VOCABULARY.size == 274


def test_cl100k_and_the_permanent_ids_fill_the_papers_vocabulary() -> None:
    assert VocabularyConfig(num_text_ids=100_277, switch_tokens=True).size == 100_288  # Table 8


def test_targets_are_the_next_tokens(builder: SequenceBuilder) -> None:
    sequence = builder.build(Document((TextPart("a"), latents("image", 3), TextPart("b"))))
    eos, begin, end = 256, VOCABULARY.begin_id("image"), VOCABULARY.end_id("image")
    assert sequence.input_ids.tolist() == [eos, 97, begin, begin, begin, begin, end, 98, eos]
    assert sequence.modality_ids.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0]
    # At the begin token and at a latent, "begin" says that another latent follows.
    assert sequence.labels.tolist() == [97, begin, begin, begin, begin, end, 98, eos, IGNORE_LABEL]
    batch = builder.collate([[sequence]])
    assert batch.text_positions.tolist() == [0, 1, 5, 6, 7]
    assert batch.continue_positions["image"].tolist() == [2, 3, 4]
    assert batch.latent_positions["image"].tolist() == [3, 4, 5]


def test_class_conditional_layout_has_no_discrete_target() -> None:
    builder = SequenceBuilder(VocabularyConfig(num_classes=5), ["image"])
    sequence = builder.build(Document((LabelPart(2), latents("image", 3))))
    assert sequence.input_ids.tolist() == [2, 0, 0, 0]
    assert sequence.modality_ids.tolist() == [0, 1, 1, 1]
    assert sequence.labels.tolist() == [IGNORE_LABEL] * 4


def as_label(label: int) -> LabelPart:
    return LabelPart(None if label == 5 else label)


@pytest.mark.parametrize("num_spans", [1, 3])
def test_vectorised_class_layout_equals_the_general_one(num_spans: int) -> None:
    builder = SequenceBuilder(VocabularyConfig(num_classes=5), ["speech", "image"])
    pictures = torch.randn(4, num_spans, 2, 6, generator=torch.Generator().manual_seed(0))
    labels, keys = torch.tensor([0, 5, 3, 2]), torch.tensor([7, -3, 2**40, 0])
    documents = [
        Document(tuple(part for picture in own for part in (label, LatentPart("image", picture))), key)
        for label, own, key in zip(map(as_label, labels.tolist()), pictures, keys.tolist(), strict=True)
    ]
    general = builder.collate([[builder.build(document)] for document in documents])
    fast = builder.collate_labelled(labels, "image", pictures.flatten(1, 2), keys, num_spans=num_spans)
    for name in ("input_ids", "labels", "modality_ids", "positions", "document_ids", "text_positions"):
        assert torch.equal(getattr(general, name), getattr(fast, name)), name
    for name in ("latents", "latent_positions", "latent_keys"):
        assert getattr(general, name).keys() == getattr(fast, name).keys()
        assert torch.equal(getattr(general, name)["image"], getattr(fast, name)["image"]), name
    assert general.plain_causal == fast.plain_causal
    assert general.continue_positions == fast.continue_positions == {}


def test_packing_restarts_positions_and_separates_documents(builder: SequenceBuilder) -> None:
    first, second = (builder.build(Document((TextPart(text),))) for text in ("ab", "c"))
    batch = builder.collate([[first, second], [second]])
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2], [0, 1, 2, 0, 0, 0, 0]]
    assert batch.document_ids.tolist() == [[0, 0, 0, 0, 1, 1, 1], [0, 0, 0] + [PADDING_DOCUMENT] * 4]
    assert not batch.plain_causal
    mask = document_causal_mask(batch.document_ids)[0, 0]
    assert not mask[4:, :4].any()  # the second document does not see the first
    assert torch.equal(mask[:4, :4], torch.ones(4, 4).tril().bool())
    # The last token of a document has no target: the next document's first token is nobody's prediction.
    assert batch.labels[0, 3] == IGNORE_LABEL


def test_text_cannot_forge_switch_tokens(builder: SequenceBuilder) -> None:
    sequence = builder.build(Document((TextPart("<|endoftext|><boi>\x00"),)))
    assert int(sequence.input_ids[1:-1].max()) < 256


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (Document((LabelPart(9),)), "label 9 is outside"),
        (Document((LatentPart("video", torch.zeros(1, 2)),)), "'video' latents but the model knows image, speech"),
    ],
)
def test_parts_that_do_not_fit_are_refused(builder: SequenceBuilder, document: Document, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        builder.build(document)


def test_latents_need_something_before_them() -> None:
    builder = SequenceBuilder(VocabularyConfig(num_classes=5), ["image"])
    with pytest.raises(ValueError, match="nothing predicts the first one"):
        builder.build(Document((latents("image", 2),)))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_latents_that_are_not_finite_are_refused(builder: SequenceBuilder, value: float) -> None:
    broken = latents("image", 3)
    broken.latents[1, 2] = value
    with pytest.raises(ValueError, match="image latents hold NaN or infinity"):
        builder.build(Document((TextPart("look: "), broken)))


def test_neighbouring_spans_of_different_modalities_are_told_apart_without_switch_tokens() -> None:
    builder = SequenceBuilder(VocabularyConfig(num_classes=5), list(DIMS))
    document = Document((LabelPart(1), latents("image", 2), latents("speech", 3)))
    restored = builder.restore(builder.build(document))
    assert len(restored.parts) == 3
    assert all(same(first, second) for first, second in zip(restored.parts, document.parts, strict=True))


def test_vocabularies_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="needs switch_tokens"):
        VocabularyConfig(num_text_ids=257)
    with pytest.raises(ValueError, match="cannot be negative"):
        VocabularyConfig(num_classes=-1)
    with pytest.raises(ValueError, match="id 11 is not a class label"):
        VocabularyConfig(switch_tokens=True).label_of(11)  # no classes: not the null class either


@pytest.mark.parametrize("rows", [[], [[]]])
def test_a_batch_without_documents_is_refused(builder: SequenceBuilder, rows: list) -> None:
    with pytest.raises(ValueError, match="at least one"):
        builder.collate(rows)


CODES = VocabularyConfig(num_text_ids=257, switch_tokens=True, max_grid_side=4, num_codes=16)


def test_sizes_and_codes_have_ids_of_their_own_behind_all_others() -> None:
    assert CODES.size_id(1) == 268
    assert CODES.side_of(CODES.size_id(4)) == 4
    assert CODES.side_of(CODES.size_id(4) + 1) is None
    assert CODES.first_code_id == 272
    assert CODES.size == 288
    with pytest.raises(ValueError, match="a side of 5 latents cannot be said"):
        CODES.size_id(5)
    for fields in ({"max_grid_side": 3}, {"num_codes": 3}):
        with pytest.raises(ValueError, match="switch_tokens: true"):
            VocabularyConfig(**fields)


def test_pictures_of_codes_and_of_said_sizes_are_restored() -> None:
    builder = SequenceBuilder(CODES, [], ByteTokenizer())
    codes = torch.tensor([3, 0, 15, 7, 7, 1])
    sequence = builder.build(Document((CodePart("image", codes, (2, 3)), TextPart("a"), CodePart("image", codes))))
    begin, end = CODES.begin_id("image"), CODES.end_id("image")
    ids = [272 + code for code in codes.tolist()]
    assert sequence.input_ids.tolist() == [256, begin, 269, 270, *ids, end, 97, begin, *ids, end, 256]
    assert sequence.labels.tolist() == [*sequence.input_ids.tolist()[1:], IGNORE_LABEL]
    first, text, second = builder.restore(sequence).parts
    assert isinstance(first, CodePart)
    assert isinstance(second, CodePart)
    assert (first.grid, text, second.grid) == ((2, 3), TextPart("a"), None)
    assert torch.equal(first.codes, codes)
    assert torch.equal(second.codes, codes)

    latent_builder = SequenceBuilder(CODES, list(DIMS), ByteTokenizer())
    picture = LatentPart("image", torch.ones(6, 4), (3, 2))
    (restored,) = latent_builder.restore(latent_builder.build(Document((picture,)))).parts
    assert isinstance(restored, LatentPart)
    assert restored.grid == (3, 2)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (CodePart("image", torch.tensor([16])), r"needs some, in 0..15"),
        (CodePart("image", torch.zeros(0, dtype=torch.long)), "or none"),
        (CodePart("image", torch.tensor([1, 2]), (2, 2)), "a grid of 2 x 2 does not hold 2 tokens"),
        (IdsPart((1, 257)), r"ids of text lie in 0..256"),
    ],
)
def test_parts_that_do_not_fit_the_vocabulary_are_refused(part: Part, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SequenceBuilder(CODES, [], ByteTokenizer()).build(Document((part,)))


def test_a_piece_of_a_document_has_no_end_that_it_did_not_have(builder: SequenceBuilder) -> None:
    whole = builder.build(Document((IdsPart((97, 98)), latents("image", 2)), begins=False, ends=False, group=3))
    begin, end = VOCABULARY.begin_id("image"), VOCABULARY.end_id("image")
    assert whole.input_ids.tolist() == [97, 98, begin, begin, begin, end]
    batch = builder.collate([[whole]], length=8, group_names=("a", "b", "c", "d"))
    assert batch.input_ids.shape == (1, 8)
    assert batch.group_ids.tolist() == [[3] * 6 + [0] * 2]
    with pytest.raises(ValueError, match="a row of 6 tokens does not fit into 5"):
        builder.collate([[whole]], length=5)


# Compiling it is for GPUs; here the plain form shows what the blocks mean.
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_block_mask_is_the_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    document_ids = torch.tensor([[0] * 100 + [1] * 60 + [2] * 40 + [PADDING_DOCUMENT] * 56, [0] * 256])
    query, key, value = (torch.randn(2, 2, 256, 8, generator=generator) for _ in range(3))
    by_blocks = attend(query, key, value, mask=document_block_mask(document_ids))
    by_tensor = attend(query, key, value, mask=document_causal_mask(document_ids))
    torch.testing.assert_close(by_blocks, by_tensor, atol=1e-5, rtol=1e-5)  # sums in another order
