"""Folders of sound: the corpora's own layouts, and links and files that should not be there."""

import os

import pytest

from latentlm.data.audio.sources.folders import AudioFolder
from latentlm.data.records import BadRecord, DataError


@pytest.fixture
def clip(tone, encoded) -> bytes:
    return encoded(tone(440, 0.1))


def test_librispeech_has_its_speakers_in_its_names(tmp_path, write, clip):
    for number, part in enumerate(("train-clean-100", "train-other-500")):
        write(tmp_path / part / "19" / "198" / f"19-198-000{number}.flac", clip)
    text = "19-198-0000 NORTHANGER ABBEY\n19-198-0001 THIS LITTLE WORK\n"
    write(tmp_path / "train-clean-100" / "19" / "198" / "19-198.trans.txt", text.encode())
    source = AudioFolder(tmp_path, "train", {})
    assert list(source.column("speaker")) == ["19", "19"]
    assert list(source.column("text")) == ["NORTHANGER ABBEY", "THIS LITTLE WORK"]


def test_lj_speech_has_one_speaker_and_normalised_texts(tmp_path, write, clip):
    for name in ("LJ001-0001", "LJ001-0002", "LJ001-0003"):
        write(tmp_path / "wavs" / f"{name}.wav", clip)
    write(tmp_path / "metadata.csv", b"LJ001-0001|in 1455|in fourteen fifty-five\nLJ001-0002|so|\n")
    source = AudioFolder(tmp_path, "train", {})
    assert list(source.column("text")) == ["in fourteen fifty-five", "so", ""]
    assert source[0].speaker == source[1].speaker == ""


def test_the_normalised_transcript_beside_a_file_is_preferred(tmp_path, write, clip):
    write(tmp_path / "a" / "1.wav", clip)
    write(tmp_path / "a" / "1.original.txt", b"No. 1")
    write(tmp_path / "a" / "1.normalized.txt", b"number one")
    write(tmp_path / "top.MP3", clip)
    source = AudioFolder(tmp_path, "train", {})
    assert [(record.text, record.speaker) for record in (source[0], source[1])] == [("number one", "a"), ("", "")]


def test_links_out_of_the_folder_are_rejected_and_their_texts_not_read(tmp_path, write, clip):
    secret = write(tmp_path / "secret" / "1.wav", clip)
    write(tmp_path / "secret" / "key.txt", b"a password")
    root = tmp_path / "set"
    write(root / "a" / "1.wav", clip)
    (root / "a" / "1.txt").symlink_to(tmp_path / "secret" / "key.txt")
    (root / "a" / "2.wav").symlink_to(secret)
    (root / "b").symlink_to(secret.parent)
    source = AudioFolder(root, "train", {})
    assert len(source) == 1
    assert source[0].text == ""
    assert {bad.name.removeprefix(str(root)) for bad in source.rejected} == {"/a/2.wav", "/b"}


def test_a_transcript_that_is_no_text_is_a_bad_record(tmp_path, write, clip):
    write(tmp_path / "a" / "1.wav", clip)
    write(tmp_path / "a" / "1.txt", b"\xff\xfe\x00")
    with pytest.raises(BadRecord, match=r"1\.txt: a transcript that is not UTF-8"):
        AudioFolder(tmp_path, "train", {})[0]


def test_a_damaged_list_is_rejected_and_the_sound_kept(tmp_path, write, clip):
    write(tmp_path / "1.wav", clip)
    write(tmp_path / "metadata.csv", b"1|\xff\xfe\n")
    source = AudioFolder(tmp_path, "train", {})
    assert len(source) == 1
    assert len(source.rejected) == 1


def test_lengths_come_from_headers_and_damage_is_unknown(tmp_path, write, clip):
    write(tmp_path / "1.wav", clip)
    write(tmp_path / "2.wav", b"no sound")
    os.mkfifo(tmp_path / "3.wav")
    seconds = AudioFolder(tmp_path, "train", {}).seconds()
    assert seconds[0] == 0.1
    assert str(seconds[1:].tolist()) == "[nan, nan]"


def test_a_folder_without_sound_and_columns_of_files_are_refused(tmp_path, write):
    write(tmp_path / "notes.txt", b"nothing")
    with pytest.raises(DataError, match="no sound file found"):
        AudioFolder(tmp_path, "train", {})
    with pytest.raises(DataError, match="has no columns"):
        AudioFolder(tmp_path, "train", {"text": "t"})
