"""The pool keeps the order, bounds what is under way, and ends with its parent's intent."""

import operator
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from datasets_shards.errors import InputError
from datasets_shards.frames.errors import FrameError
from datasets_shards.frames.video import count_frames
from datasets_shards.pool import JOBS_UNDER_WAY_PER_WORKER, ordered_map


@pytest.mark.parametrize("workers", [1, 2])
def test_order_and_bound(workers: int) -> None:
    taken = 0

    def jobs() -> Iterator[int]:
        nonlocal taken
        while taken < 40:
            taken += 1
            yield taken

    for done, result in enumerate(ordered_map(operator.neg, jobs(), workers), start=1):
        assert result == -done
        assert taken - done <= JOBS_UNDER_WAY_PER_WORKER * workers
    assert taken == 40


def test_an_error_in_a_worker_is_raised_here(tmp_path) -> None:
    (tmp_path / "bad.mp4").touch()
    with pytest.raises(FrameError, match=r"bad\.mp4: can't be decoded"):
        list(ordered_map(count_frames, [tmp_path / "bad.mp4"] * 3, 2))
    with pytest.raises(InputError, match=r"one of 2 workers was killed"):
        list(ordered_map(os._exit, [1], 2))


def double_or_die(job: int) -> int:
    if job in (3, 4):
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * job


def test_a_lost_worker_costs_its_own_job_alone() -> None:
    results = list(ordered_map(double_or_die, range(9), 2, lost=operator.neg))
    assert results == [0, 2, 4, -3, -4, 10, 12, 14, 16]


def test_what_stands_for_a_lost_file_is_a_row_of_it() -> None:
    from datasets_shards.faces.rows import UNREADABLE, lost_rows  # not by every worker of these tests
    from datasets_shards.sources import Video
    from fdtrain.predict.crops import describe_failure, lost_crops
    from fdtrain.predict.inputs import Input

    file = lost_crops(Input("a.mp4"))
    assert describe_failure(file).startswith("the process that read it was killed")
    (row,) = lost_rows(Video("youtube", "000", "000", "", "c23", Path("000.mp4"), "000.mp4"))
    assert (row["path"], row["status"], "bytes" in row) == ("000.mp4", UNREADABLE, False)  # so it is looked at again


def test_a_video_that_ends_its_worker_twice_ends_the_packing() -> None:
    from datasets_shards.shards.segments import SegmentJob, lost_segment

    video = SimpleNamespace(path=Path("root/000.mp4"))
    with pytest.raises(InputError, match=r"^root/000\.mp4: the process that cut its crops was killed twice"):
        lost_segment(SegmentJob(SimpleNamespace(video=video), Path("work")))


def test_no_worker_outlives_a_closed_generator() -> None:
    before = set(psutil.Process().children())
    with closing(ordered_map(abs, iter(range(1000)), 2)) as results:
        assert next(results) == 0
        started = set(psutil.Process().children()) - before
        workers = [child for child in started if "spawn_main" in str(child.cmdline())]  # not the resource tracker
        assert len(workers) == 2
    assert not psutil.wait_procs(workers, timeout=120)[1]
