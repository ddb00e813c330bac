"""Parquet and saved Hugging Face data sets: columns, cells, damaged files, paths that are not followed."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentlm.data.records import BadRecord, DataError
from latentlm.data.sources.tables import open_hf_dataset, open_parquet


def write_table(path: Path, columns: dict, **options) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_parquet_rows_carry_captions_and_mapped_columns(tmp_path, png):
    columns = {"photo": [png(1), png(2)], "style": ["flat", "3d"], "caption": ["one", "two"]}
    path = write_table(tmp_path / "a.parquet", columns)
    source = open_parquet(path, "train", {"image": "photo", "label": "style"})
    assert source.label_names == ("3d", "flat")
    assert source.labels.tolist() == [1, 0]
    assert source[1]["caption"] == "two"
    assert source[1]["image"] == png(2)


def test_a_struct_with_a_path_only_is_a_bad_record_and_the_path_is_not_opened(tmp_path, png, write):
    secret = write(tmp_path / "secret.png")
    cells = [{"bytes": None, "path": str(secret)}, {"bytes": png(), "path": None}]
    source = open_parquet(write_table(tmp_path / "a.parquet", {"image": cells}), "train", {})
    with pytest.raises(BadRecord, match="not followed"):
        source[0]
    assert source[1]["image"] == png()


@pytest.mark.parametrize(
    ("cell", "reason"),
    [("a text", "neither"), ([[1, 2], [3]], "differ in length"), ([[300, 1]], "0 to 255"), (None, "neither")],
)
def test_cells_that_are_no_pictures_are_bad_records(tmp_path, cell, reason):
    source = open_parquet(write_table(tmp_path / "a.parquet", {"image": [cell]}), "train", {})
    with pytest.raises(BadRecord, match=reason):
        source[0]


def test_corrupt_parquet_files_beside_good_ones_are_rejected_by_name(tmp_path, png, write):
    write_table(tmp_path / "0.parquet", {"image": [png()] * 3})
    good = (tmp_path / "0.parquet").read_bytes()
    write(tmp_path / "1.parquet", good[: len(good) // 2])
    write(tmp_path / "2.parquet", b"PAR1 this is no table PAR1")
    write_table(tmp_path / "3.parquet", {"other": [1]})
    source = open_parquet(tmp_path, "train", {})
    assert len(source) == 3
    assert [Path(bad.name).name for bad in source.rejected] == ["1.parquet", "2.parquet", "3.parquet"]
    with pytest.raises(DataError, match=r"no Parquet file can be read[\s\S]*2.parquet"):
        open_parquet(tmp_path / "2.parquet", "train", {})


def test_a_damaged_row_group_spoils_its_own_rows_only(tmp_path, png):
    path = write_table(tmp_path / "a.parquet", {"image": [png(i) for i in range(4)]}, row_group_size=2)
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data[start : start + 20] = bytes(20)
    path.write_bytes(bytes(data))
    source = open_parquet(path, "train", {})
    assert source[0]["image"] == png(0)
    with pytest.raises(BadRecord, match=r"row group 1, row 0.: its row group is damaged"):
        source[2]
    assert source[1]["image"] == png(1)


def test_parquet_row_groups_leave_the_cache_when_it_is_full(tmp_path, monkeypatch, png):
    monkeypatch.setattr("latentlm.data.sources.tables._CACHE_BYTES", 1)
    path = write_table(tmp_path / "a.parquet", {"image": [png(i) for i in range(6)]}, row_group_size=2)
    source = open_parquet(path, "train", {})
    assert [source[i]["image"] for i in (0, 5, 2, 1)] == [png(i) for i in (0, 5, 2, 1)]


@pytest.mark.parametrize(
    "state",
    [
        {"_data_files": [{"filename": "../secret.arrow"}]},
        {"_data_files": [{"filename": "/etc/passwd"}]},
        {"_data_files": [{"filename": ".."}]},
        {"_data_files": [{}]},
        {"_data_files": []},
        {"_data_files": "data.arrow"},
        [],
    ],
)
def test_a_saved_dataset_may_name_only_files_of_its_own_folder(tmp_path, state, write):
    folder = tmp_path / "set"
    write(folder / "state.json", json.dumps(state).encode())
    with pytest.raises(DataError, match=r"plain file name|no data files|JSON object"):
        open_hf_dataset(folder, "train", {})


def test_a_state_file_nested_too_deep_is_refused(tmp_path, write):
    write(tmp_path / "state.json", b"[" * 100_000)
    with pytest.raises(DataError, match="cannot be read as JSON"):
        open_hf_dataset(tmp_path, "train", {})
