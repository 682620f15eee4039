"""The pool keeps the order, bounds what is under way, and ends with its parent's intent."""

import operator
import os
from collections.abc import Iterator
from contextlib import closing

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


def test_no_worker_outlives_a_closed_generator() -> None:
    before = set(psutil.Process().children())
    with closing(ordered_map(abs, iter(range(1000)), 2)) as results:
        assert next(results) == 0
        started = set(psutil.Process().children()) - before
        workers = [child for child in started if "spawn_main" in str(child.cmdline())]  # not the resource tracker
        assert len(workers) == 2
    assert not psutil.wait_procs(workers, timeout=120)[1]
