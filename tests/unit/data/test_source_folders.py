"""Pictures as single files: classes, links that leave the folder, files that cannot be read."""

import os
from pathlib import Path

import pytest

from latentlm.data.records import BadRecord, DataError
from latentlm.data.sources.folders import ClassFolderSource, ImageFolderSource


def test_class_ids_follow_sorted_names_and_other_files_are_ignored(tmp_path, write):
    for name in ("b/2.png", "b/1.JPG", "a/x/deep.png", "b/notes.txt", ".hidden/1.png", "a/.thumb.png"):
        write(tmp_path / name)
    (tmp_path / "c").mkdir()
    source = ClassFolderSource(tmp_path, "train", {})
    assert source.label_names == ("a", "b", "c")
    names = [Path(source[i]["name"]).relative_to(tmp_path).as_posix() for i in range(len(source))]
    assert names == ["a/x/deep.png", "b/1.JPG", "b/2.png"]
    assert source.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize("kind", [ClassFolderSource, ImageFolderSource])
def test_links_that_leave_the_folder_are_rejected_by_name_and_inner_ones_kept(tmp_path, kind, write):
    secret = write(tmp_path / "secret" / "1.png")
    root = tmp_path / "set"
    good = write(root / "a" / "good.png")
    (root / "a" / "inner.png").symlink_to(good)
    (root / "a" / "outer.png").symlink_to(secret)
    (root / "a" / "nested").symlink_to(secret.parent)
    (root / "b").symlink_to(secret.parent)
    source = kind(root, "train", {})
    assert [Path(source[i]["name"]).name for i in range(len(source))] == ["good.png", "inner.png"]
    rejected = " ".join(str(bad) for bad in source.rejected)
    assert all(name in rejected for name in ("outer.png", "nested", "set/b"))


def test_a_file_that_vanishes_or_is_empty_is_a_bad_record(tmp_path, write):
    for name in ("a.png", "b.png"):
        write(tmp_path / name)
    source = ImageFolderSource(tmp_path, "train", {})
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(BadRecord, match=r"a\.png: not a regular file"):
        source[0]
    with pytest.raises(BadRecord, match=r"b\.png: empty file"):
        source[1]


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(DataError, match="no picture found"):
        ImageFolderSource(tmp_path, "train", {})


def test_a_named_pipe_among_the_pictures_does_not_hang(tmp_path, write):
    write(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    source = ImageFolderSource(tmp_path, "train", {})
    with pytest.raises(BadRecord, match="not a regular file"):
        source[1]
