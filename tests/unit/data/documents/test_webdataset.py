"""Tars of documents: samples with JSON, samples of a picture and its text, members that are refused."""

import io
import json
import pickle
import tarfile

import pytest

from latentlm.data.records import BadRecord, DataError


def tar(path, members):
    with tarfile.open(path, "w") as archive:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def parts(*entries, **fields):
    return json.dumps({"parts": entries, **fields}).encode()


def test_parts_name_members_of_their_own_sample(tmp_path, png, said, open_all):
    text = parts({"image": "0.png"}, {"text": "between"}, {"image": "1.PNG"}, {"image": "0.png"}, kind="novel")
    members = [("a/1.json", text), ("a/1.0.png", png(1)), ("a/1.1.PNG", png(2)), ("b/1.json", b'{"text": "b"}')]
    source = pickle.loads(pickle.dumps(open_all(tar(tmp_path / "a.tar", members))))  # noqa: S301
    zero, one = ("image", png(1)), ("image", png(2))
    assert said(source[0]) == [zero, "between", one, zero]
    assert source[0].fields == {"kind": "novel"}
    assert said(source[1]) == ["b"]


def test_a_picture_with_its_text_and_class_goes_through_the_template(tmp_path, png, said, open_all):
    members = [("1.png", png(1)), ("1.txt", "Käse".encode()), ("1.cls", b"3\n"), ("2.jpg", png(2)), ("2.txt", b"")]
    path = tar(tmp_path / "a.tar", members)
    source = open_all(path)
    assert [said(source[i]) for i in range(2)] == [["Käse", ("image", png(1))], ["", ("image", png(2))]]
    assert source[0].fields == {"caption": "Käse", "label": 3}
    labelled = open_all(path, templates=["{label_name}"], label_names=["a", "b", "c", "d"])
    assert said(labelled[0]) == ["d"]
    with pytest.raises(BadRecord, match=r"a.tar/2: has no label_name"):
        labelled[1]
    with pytest.raises(DataError, match="asks for keywords, but the records have caption, image, label"):
        open_all(path, templates=["{keywords}"])


def test_json_beside_a_picture_gives_fields_and_members_come_first(tmp_path, png, said, open_all):
    members = [("1.json", b'{"caption": "json", "width": 3}'), ("1.png", png(1)), ("1.txt", b"member")]
    source = open_all(tar(tmp_path / "a.tar", members), templates=["{caption} {width}{image}"])
    assert said(source[0]) == ["member 3", ("image", png(1))]
    other = open_all(tmp_path / "a.tar", templates=["{keywords}"])
    with pytest.raises(BadRecord, match="it has caption, image, width"):
        other[0]


@pytest.mark.parametrize("reference", ["7.png", "../2.png", "/etc/hostname", "2.png", "pyd", ""])
def test_a_picture_outside_the_sample_is_never_read(tmp_path, png, reference, open_all):
    members = [("1.json", parts({"image": reference})), ("1.0.png", png(1)), ("2.png", png(2)), ("1.pyd", b"x")]
    with pytest.raises(BadRecord, match=r"no such picture in the sample; it has 0.png"):
        open_all(tar(tmp_path / "a.tar", members))[0]


def test_links_second_members_and_damage_are_rejected_by_name(tmp_path, png, said, open_all):
    link = tarfile.TarInfo("3.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    members = [("1.png", png(1)), ("1.png", png(2)), (link, b""), ("../4.png", png(4)), ("5.json", b"[" * 100_000)]
    members += [("6.cls", b"9" * 5000), ("7.0.png", b""), ("7.json", parts({"image": "0.png"}))]
    path = tar(tmp_path / "a.tar", members)
    source = open_all(path)
    assert [bad.name.removeprefix(f"{path}/") for bad in source.rejected] == ["1.png", "3.png", "../4.png"]
    assert said(source[0]) == [("image", png(1))]
    for index, reason in ((1, "nested deeper"), (2, "give templates"), (3, "empty file")):
        with pytest.raises(BadRecord, match=reason):
            source[index]
    path.write_bytes(path.read_bytes()[:2000])
    assert any("cut short" in bad.reason for bad in open_all(path).rejected)


def test_an_empty_or_compressed_tar_is_refused(tmp_path, write, open_all):
    tar(tmp_path / "a.tar", [("1.pth", b"x")])
    with tarfile.open(tmp_path / "b.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("1.png"))
    for name in ("a.tar", "b.tar"):
        with pytest.raises(DataError, match="no sample in 1 tar"):
            open_all(tmp_path / name)
