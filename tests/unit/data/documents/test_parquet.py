"""Parquet: the parts column, columns for templates, class names, null cells."""

import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentlm.data.records import BadRecord, DataError

PARTS = pa.list_(pa.struct([("text", pa.string()), ("image", pa.binary())]))


def test_a_parts_column_keeps_the_order_and_the_other_columns(tmp_path, png, said, open_all):
    rows = [
        [{"image": png(1)}, {"image": png(2)}, {"text": ""}, {"text": "end"}],
        [{"text": "start"}, {"image": png(3)}],
    ]
    table = pa.table({"parts": pa.array(rows, PARTS), "split_kind": ["novel", None], "raw": [b"x", b"y"]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    source = pickle.loads(pickle.dumps(open_all(tmp_path)))  # noqa: S301
    assert said(source[0]) == [("image", png(1)), ("image", png(2)), "", "end"]
    assert said(source[1]) == ["start", ("image", png(3))]
    assert [source[i].fields for i in range(2)] == [{"split_kind": "novel"}, {"split_kind": None}]
    with pytest.raises(DataError, match="have parts of their own"):
        open_all(tmp_path, templates=["{split_kind}"])


def test_columns_are_mapped_and_go_through_the_template(tmp_path, png, said, open_all):
    columns = {"photo": [png(1)], "alt": ["a cat"], "caption": ["another"], "keywords": [["x"]], "style": ["flat"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    mapped = {"image": "photo", "caption": "alt", "kind": "style"}
    source = open_all(tmp_path, columns=mapped, templates=["{image} {caption}, {kind}"])
    assert said(source[0]) == [("image", png(1)), " a cat, flat"]
    assert source[0].fields == {"caption": "a cat", "keywords": ["x"], "kind": "flat"}
    with pytest.raises(DataError, match=r"asks for style, but the records have caption, image, keywords, kind"):
        open_all(tmp_path, columns=mapped, templates=["{style}"])
    with pytest.raises(DataError, match="has no column pixels"):
        open_all(tmp_path, columns={"image": "pixels"})


def test_declared_class_names_become_label_names_and_can_be_replaced(tmp_path, png, said, open_all):
    table = pa.table({"image": [{"bytes": png(i), "path": None} for i in range(3)], "label": [1, 0, 7]})
    info = '{"info": {"features": {"label": {"names": ["cat", "dog"]}}}}'
    pq.write_table(table.replace_schema_metadata({"huggingface": info}), tmp_path / "a.parquet")
    source = open_all(tmp_path, templates=["{label_name}{image}"])
    assert [said(source[i])[0] for i in range(2)] == ["dog", "cat"]
    with pytest.raises(BadRecord, match="has no label_name"):
        source[2]
    renamed = open_all(tmp_path, templates=["{label_name}{image}"], label_names=["Katze", "Hund"])
    assert said(renamed[0]) == ["Hund", ("image", png(0))]
    with pytest.raises(BadRecord, match="label 7 is no class id below 2"):
        renamed[2]


def test_null_cells_are_bad_records_beside_good_ones(tmp_path, png, said, open_all):
    pq.write_table(
        pa.table({"image": [png(1), None, png(3), b""], "caption": ["one", "two", None, "four"]}),
        tmp_path / "a.parquet",
    )
    source = open_all(tmp_path)
    assert said(source[0]) == ["one", ("image", png(1))]
    for index, reason in ((1, "has no image"), (2, "has no caption"), (3, "empty file")):
        with pytest.raises(BadRecord, match=rf"a.parquet\[row group 0, row {index}\].*{reason}"):
            source[index]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (None, "parts is empty"),
        ([], "parts is empty"),
        ([None], "found neither"),
        ([{"text": None, "image": None}], "found neither"),
        ([{"text": "a", "image": b"b"}], "found ..image., .text."),
        ([{"image": b""}], "empty file"),
    ],
)
def test_parts_that_are_no_parts_are_bad_records(tmp_path, cell, reason, open_all):
    pq.write_table(pa.table({"parts": pa.array([cell], PARTS)}), tmp_path / "a.parquet")
    with pytest.raises(BadRecord, match=reason):
        open_all(tmp_path)[0]


def test_a_table_of_nothing_known_is_refused_unless_it_is_mapped(tmp_path, said, open_all):
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="none of the columns body is known"):
        open_all(tmp_path)
    assert said(open_all(tmp_path, columns={"text": "body"})[0]) == ["x"]
