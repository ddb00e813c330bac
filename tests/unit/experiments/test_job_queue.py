"""Jobs in processes: order, failures, signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latentlm.experiments.job_queue import Job, job_environment, run_jobs

QUEUE_SCRIPT = """
import sys
from pathlib import Path
from latentlm.experiments.job_queue import Job, run_jobs
sleep = [sys.executable, "-S", "-c", "import signal, sys, time\\n"
         "signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('saved') or 143))\\n"
         "print('ready', flush=True)\\ntime.sleep(100)"]
outcome = run_jobs([Job("a"), Job("b"), Job("c", ("a",))], lambda job: sleep, num_parallel=2, log_dir=Path(sys.argv[1]))
print(outcome.done, outcome.failed, outcome.stopped_by)
"""


def shell(folder: Path, **scripts: str):
    """A command line per job; by default it notes its name in a common file."""
    return lambda job: ["sh", "-c", scripts.get(job, f"echo {job} >> '{folder}/order'")]


def test_a_job_begins_after_all_it_needs(tmp_path: Path) -> None:
    jobs = [Job("a"), Job("b", ("a",)), Job("c", ("a", "b", "elsewhere")), Job("d")]
    slow_a = f"sleep 0.3; echo a >> '{tmp_path}/order'"
    outcome = run_jobs(jobs, shell(tmp_path, a=slow_a), num_parallel=4, log_dir=tmp_path / "logs")
    order = (tmp_path / "order").read_text().split()
    assert sorted(order) == ["a", "b", "c", "d"]
    assert order.index("a") < order.index("b") < order.index("c")
    assert sorted(outcome.done) == ["a", "b", "c", "d"]


def test_no_more_jobs_run_at_a_time_than_allowed(tmp_path: Path) -> None:
    script = f"cd '{tmp_path}'; touch r.$$; ls r.* | wc -l >> counts; sleep 0.15; rm r.$$"
    jobs = [Job(f"j{number}") for number in range(5)]
    run_jobs(jobs, lambda job: ["sh", "-c", script], num_parallel=2, log_dir=tmp_path / "logs")
    assert max(map(int, (tmp_path / "counts").read_text().split())) <= 2


def test_a_job_that_wants_to_be_alone_runs_after_all_others_and_with_none(tmp_path: Path) -> None:
    script = f"cd '{tmp_path}'; echo {{0}} >> order; touch r.$$; ls r.* | wc -l >> {{0}}; sleep 0.15; rm r.$$"
    jobs = [Job("timed", alone=True), Job("a"), Job("bad"), Job("lost", ("bad",), alone=True), Job("also", alone=True)]
    jobs += [Job("b", ("a",)), Job("c")]
    scripts = {job.name: script.format(job.name) for job in jobs} | {"bad": "exit 1"}
    outcome = run_jobs(jobs, shell(tmp_path, **scripts), num_parallel=3, log_dir=tmp_path / "logs")
    assert (tmp_path / "order").read_text().split()[-2:] == ["timed", "also"]
    assert [(tmp_path / name).read_text().strip() for name in ("timed", "also")] == ["1", "1"]
    assert sorted(outcome.done) == ["a", "also", "b", "c", "timed"]
    assert set(outcome.failed) == {"bad", "lost"}


def test_what_needs_a_job_that_is_alone_follows_it(tmp_path: Path) -> None:
    jobs = [Job("timed", alone=True), Job("after", ("timed",)), Job("a")]
    assert run_jobs(jobs, shell(tmp_path), num_parallel=2, log_dir=tmp_path / "logs").done == ["a", "timed", "after"]


def test_a_failure_takes_only_those_that_need_it_and_shows_its_last_lines(tmp_path: Path) -> None:
    jobs = [Job("bad"), Job("hopeless", ("bad",)), Job("worse", ("hopeless",)), Job("good")]
    outcome = run_jobs(jobs, shell(tmp_path, bad="echo the reason; exit 3"), num_parallel=2, log_dir=tmp_path / "logs")
    assert outcome.done == ["good"]
    assert outcome.failed["bad"].splitlines()[0] == f"exit code 3; {tmp_path}/logs/bad.log ends with:"
    assert outcome.failed["bad"].endswith("    the reason")
    assert outcome.failed["hopeless"] == "not begun: it needs bad"
    assert outcome.failed["worse"] == "not begun: it needs hopeless"


def test_a_killed_job_is_a_failure(tmp_path: Path) -> None:
    outcome = run_jobs([Job("a")], shell(tmp_path, a="kill -9 $$"), num_parallel=1, log_dir=tmp_path / "logs")
    assert outcome.failed["a"].startswith("killed by signal 9")


def test_a_signal_reaches_the_jobs_once_and_nothing_new_begins(tmp_path: Path) -> None:
    command = [sys.executable, "-c", QUEUE_SCRIPT, str(tmp_path)]
    queue = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    logs = [tmp_path / "a.log", tmp_path / "b.log"]
    deadline = time.monotonic() + 120  # only guards against a hang
    while not all(log.exists() and log.read_text() == "ready\n" for log in logs):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    queue.send_signal(signal.SIGTERM)
    output, _ = queue.communicate(timeout=60)
    assert output == "[] {} 15\n"
    assert [log.read_text() for log in logs] == ["ready\nsaved\n"] * 2
    assert not (tmp_path / "c.log").exists()


def test_jobs_share_the_cores_unless_the_user_says_otherwise() -> None:
    cores = len(os.sched_getaffinity(0))
    assert job_environment({}, num_parallel=1)["OMP_NUM_THREADS"] == str(cores)
    assert job_environment({}, num_parallel=10 * cores)["OMP_NUM_THREADS"] == "1"
    assert job_environment({"OMP_NUM_THREADS": "3"}, num_parallel=1)["OMP_NUM_THREADS"] == "3"


def test_no_jobs_at_a_time_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--jobs is 0; it must be at least 1"):
        run_jobs([], shell(tmp_path), num_parallel=0, log_dir=tmp_path)
