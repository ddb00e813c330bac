"""Tars: grouping of members, what is never read, and archives that are damaged or cut short."""

import io
import tarfile
from pathlib import Path

import pytest

from latentlm.data.records import BadRecord, DataError
from latentlm.data.sources.webdataset import open_webdataset


def write_tar(path: Path, members: list[tuple[tarfile.TarInfo | str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def test_links_devices_and_names_that_lead_out_are_rejected_in_a_tar(tmp_path, png):
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("good.png", png(1)),
            special("symbolic.png", tarfile.SYMTYPE, "/etc/passwd"),
            special("hard.png", tarfile.LNKTYPE, "good.png"),
            special("device.png", tarfile.CHRTYPE),
            special("pipe.png", tarfile.FIFOTYPE),
            ("../outside.png", png()),
            ("/absolute.png", png()),
            ("x/../../outside.png", png()),
            ("last.png", png(2)),
        ],
    )
    source = open_webdataset(path, "train", {})
    assert [source[i]["image"] for i in range(len(source))] == [png(1), png(2)]
    names = [bad.name.removeprefix(f"{path}/") for bad in source.rejected]
    assert names[:4] == ["symbolic.png", "hard.png", "device.png", "pipe.png"]
    assert names[4:] == ["../outside.png", "/absolute.png", "x/../../outside.png"]


def test_pickled_members_of_a_tar_are_never_read(tmp_path, png):
    path = write_tar(tmp_path / "a.tar", [("1.png", png()), ("1.pyd", b"cos\nsystem\n(S'false'\ntR."), ("1.pth", b"x")])
    source = open_webdataset(path, "train", {})
    assert source[0].keys() == {"image", "key", "name"}


def test_tar_members_are_grouped_by_the_name_before_the_first_dot(tmp_path, png):
    members = [("a/1.seg.png", png(9)), ("a/1.PNG", png(1)), ("a/1.txt", "Käse".encode()), ("a/1.cls", b"3\n")]
    source = open_webdataset(write_tar(tmp_path / "a.tar", members), "train", {})
    assert (source[0]["image"], source[0]["caption"], source[0]["label"]) == (png(1), "Käse", 3)
    segmented = open_webdataset(tmp_path / "a.tar", "train", {"image": "seg.png"})
    assert segmented[0]["image"] == png(9)


def test_records_without_a_label_and_second_images_are_rejected_in_a_tar(tmp_path, png):
    members = [("1.png", png(1)), ("1.cls", b"cat"), ("2.png", png(2)), ("3.jpg", png(3)), ("3.png", png(4))]
    source = open_webdataset(write_tar(tmp_path / "a.tar", [*members, ("3.cls", b"dog")]), "train", {})
    assert [source[i]["image"] for i in range(len(source))] == [png(1), png(3)]
    assert source.label_names == ("cat", "dog")
    reasons = sorted(bad.reason for bad in source.rejected)
    assert reasons == ["a second image for record 3", "has no label"]


def test_a_truncated_tar_loses_its_end_and_says_so(tmp_path, png):
    path = write_tar(tmp_path / "a.tar", [(f"{i}.png", png(i)) for i in range(3)])
    data = path.read_bytes()
    for length in (1536 + 20, 1024 + 30, 2048, 3072):  # inside a header, inside a member, at their ends
        path.write_bytes(data[:length])
        source = open_webdataset(path, "train", {})
        assert source[0]["image"] == png(0)
        assert any("cut short" in bad.reason or "ends inside" in bad.reason for bad in source.rejected)


def test_a_damaged_header_inside_a_tar_is_not_taken_for_its_end(tmp_path, png):
    path = write_tar(tmp_path / "a.tar", [(f"{i}.png", png(i)) for i in range(3)])
    data = bytearray(path.read_bytes())
    data[1024 + 5] ^= 0xFF  # in the name of the second member: its checksum is wrong now
    path.write_bytes(bytes(data))
    source = open_webdataset(path, "train", {})
    assert len(source) == 1
    assert "damaged or cut short at byte 1,024" in source.rejected[0].reason


def test_a_compressed_tar_or_none_at_all_is_refused(tmp_path, write):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("1.png"))
    write(tmp_path / "b.tar", b"not a tar")
    for name in ("a.tar", "b.tar"):
        with pytest.raises(DataError, match=r"not a readable uncompressed tar"):
            open_webdataset(tmp_path / name, "train", {})


def test_a_label_or_caption_that_is_no_text_is_a_bad_record(tmp_path, png):
    members = [("1.png", png()), ("1.cls", b"\xff\xfe"), ("2.png", png()), ("2.cls", b"1"), ("2.txt", b"\xff")]
    members += [("1.txt", b"fine"), ("3.png", png()), ("3.cls", b"2" * 2000), ("3.txt", b"fine")]
    source = open_webdataset(write_tar(tmp_path / "a.tar", members), "train", {})
    assert len(source) == 1
    with pytest.raises(BadRecord, match="not UTF-8"):
        source[0]
    assert any("2,000 bytes" in bad.reason for bad in source.rejected)
