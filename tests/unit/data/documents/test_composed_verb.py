"""`latentlm compose`, and composed documents on their way into training."""

import argparse
from pathlib import Path

import pytest

from latentlm.cli import compose
from latentlm.data.documents import DocumentDataConfig, RawImage, open_documents
from latentlm.data.documents.composed import ComposedDataConfig, PoolConfig, open_composed, split_prompt
from latentlm.data.records import DataError
from latentlm.sequence import num_tokens
from latentlm.tokenizers.text import TextTokenizerConfig, open_text_tokenizer
from latentlm.training.document_batches import DocumentPieces, PictureReader, segments_of

CONFIG = """
kind: composed_documents
image_size: 12
num_channels: 1
pools:
  digit: {source: digits, validation_ratio: 0.2}
tasks: {which: 1, few_shot: 1}
"""


def run_verb(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    compose.add_arguments(parser)
    return compose.run(parser.parse_args(arguments), [])


def written(path: Path) -> list:
    documents = open_documents(DocumentDataConfig(path=str(path), validation_ratio=0.0), part="train")
    return [documents[index] for index in range(len(documents))]


@pytest.fixture
def config(tmp_path) -> str:
    (tmp_path / "composed.yaml").write_text(CONFIG)
    return str(tmp_path / "composed.yaml")


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_the_verb_writes_what_the_config_composes(config, tmp_path, capsys, part):
    out = tmp_path / "made" / "documents.jsonl"
    assert run_verb(config, "--part", part, "--out", str(out), "--num-documents", "20") == 0
    assert f"{out} holds 20 documents of the part {part}: few_shot " in capsys.readouterr().out
    composed = ComposedDataConfig(
        pools={"digit": PoolConfig(source="digits", validation_ratio=0.2)}, tasks={"which": 1.0, "few_shot": 1.0}
    )
    source = open_composed(composed, part=part)
    for index, document in enumerate(written(out)):
        assert dict(document.fields) == dict(source[index].fields)
        assert split_prompt(document)[1] == split_prompt(source[index])[1]  # both tasks end in text


def test_pictures_may_be_files_of_the_configured_size(config, tmp_path):
    from PIL import Image

    out = tmp_path / "documents.jsonl"
    run_verb(config, "--out", str(out), "--num-documents", "3", "--images", "files")
    pictures = sorted((tmp_path / "documents_images").iterdir())
    assert len(pictures) == sum(isinstance(part, RawImage) for document in written(out) for part in document.parts)
    with Image.open(pictures[0]) as image:
        assert (image.size, image.mode) == ((12, 12), "L")


def test_unreadable_pictures_are_skipped_up_to_the_limit(tmp_path, write, png, caplog):
    for place in range(8):
        write(tmp_path / "pictures" / f"{place % 2}" / f"{place}.png", png(place))
    write(tmp_path / "pictures" / "1" / "7.png", b"no picture")
    text = "kind: composed_documents\nimage_size: 4\nmax_bad_records: {}\ntasks: {{which: 1}}\npools: {{thing: {}}}"
    pool = f"{{path: {tmp_path / 'pictures'}, source: class_folder, validation_ratio: 0}}"
    arguments = (str(tmp_path / "a.yaml"), "--num-documents", "40", "--out", str(tmp_path / "a.jsonl"))

    (tmp_path / "a.yaml").write_text(text.format(2, pool))
    with pytest.raises(DataError, match=r"more than 2 bad records; the last: .*7\.png: not an image"):
        run_verb(*arguments)
    assert not (tmp_path / "a.jsonl").exists()

    (tmp_path / "a.yaml").write_text(text.format(40, pool))
    run_verb(*arguments)
    skipped = [record for record in caplog.records if "7.png: not an image" in record.message]
    # The first run named three.
    assert len(written(tmp_path / "a.jsonl")) == 40 - (len(skipped) - 3)
    assert len(skipped) > 3


def test_training_takes_composed_documents_as_they_are():
    pools = {"digit": PoolConfig(source="digits", validation_ratio=0.2)}
    source = open_composed(ComposedDataConfig(pools=pools, num_documents=64), part="train")
    tokenizer = open_text_tokenizer(TextTokenizerConfig())
    pictures = PictureReader(lambda picture: None, lambda picture: (2, 2), says_size=False)
    pieces = DocumentPieces(source, tokenizer, pictures, max_length=256)
    assert pieces.rejected == ()
    assert len(pieces.lengths) == 64  # none is cut
    expected = [num_tokens(segments_of(source[index], tokenizer, pictures)) for index in range(64)]
    assert pieces.lengths.tolist() == expected
