"""Real SIGKILLs, real full disks and real ranks: what a run is worth afterwards.

The work is done by tests/helpers/torture.py in a process of its own; here its reports are judged, and the runs compared
with one that nobody disturbed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HELPERS = Path(__file__).parents[1] / "helpers"
sys.path.insert(0, str(HELPERS))

from toy_training import final_state, read_metrics  # noqa: E402 - it lies in the folder just named


def torture(what: str, root: Path, *options: str, seconds: float = 500) -> dict[str, Any]:
    """Run the helper and return its report; `seconds` only guards against a hang."""
    done = subprocess.run(
        [sys.executable, str(HELPERS / "torture.py"), what, str(root), *options],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_kills_changed_nothing(root: Path, report: dict[str, Any], *, num_kills: int, num_inside: int) -> None:
    print(report)
    assert report["failures"] == [], (root / "children.log").read_text()
    assert report["kills"] >= num_kills
    assert report["inside_a_save"] >= num_inside
    expected = final_state(root / "reference")
    for name in report["finished_runs"]:
        assert final_state(root / name) == expected
        hidden = [path.name for path in (root / name).rglob(".*")]
        assert hidden == [".lock"], "leftovers of killed saves"


def test_twenty_kills_some_inside_a_save_change_no_bit_of_the_run(tmp_path: Path) -> None:
    report = torture("kill", tmp_path, "--num-kills", "20")
    # Half of the kills aim at a save, which they hit more often than not.
    assert_kills_changed_nothing(tmp_path, report, num_kills=20, num_inside=3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_four_hundred_kills_change_no_bit_of_any_run(tmp_path: Path) -> None:
    report = torture("kill", tmp_path, "--num-kills", "400", "--seed", "1", seconds=1700)
    assert_kills_changed_nothing(tmp_path, report, num_kills=400, num_inside=100)


def test_the_kill_test_notices_checkpoints_that_are_written_in_place_and_believed(tmp_path: Path) -> None:
    report = torture("kill", tmp_path, "--num-kills", "40", "--trusting")
    assert report["failures"]


def test_a_full_disk_is_a_clear_error_and_costs_no_checkpoint(tmp_path: Path) -> None:
    report = torture("disk-full", tmp_path)
    expected = final_state(tmp_path / "reference")
    codes = [trial["exit_code"] for trial in report["trials"]]
    assert codes[0] == 3, "with no space at all there must be an error"
    assert codes[-1] == 0, "with enough space there must be none"
    assert set(codes) == {0, 3}, (tmp_path / "children.log").read_text()
    for trial in report["trials"]:
        assert trial["good"] is not None
        assert trial["good"] >= report["first_good"]
        assert trial["rejected"] == trial["left"] == []
        if trial["exit_code"] == 3:
            assert trial["message"].startswith("write_failed: cannot write ")
            assert str(tmp_path / trial["run"]) in trial["message"]
            assert trial["message"].endswith("bytes are free there")
        assert trial["second_exit_code"] == 0
        assert final_state(tmp_path / trial["run"]) == expected


def test_two_ranks_are_one_rank_that_accumulates_and_agree_on_bad_steps(tmp_path: Path) -> None:
    report = torture("ranks", tmp_path)
    assert report["exit_codes"] == [0] * 5, (tmp_path / "children.log").read_text()
    one, two = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    for row, other in zip(one, two, strict=True):
        # Two terms are summed in either order; the norm's sum and the weights that follow may round differently.
        assert other == pytest.approx(row, rel=1e-5)
    bad = read_metrics(tmp_path / "bad")
    assert [row["skipped"] for row in bad] == [step == 3 for step in range(1, 9)]
    assert [row["model/total"] for row in bad[:2]] == [row["model/total"] for row in two[:2]]
