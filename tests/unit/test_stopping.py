"""Signals are noted, and met between steps."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from fdtrain.runtime import start
from fdtrain.stopping import Stopper, StopRequested
from tests.conftest import REPOSITORY


@pytest.fixture(autouse=True)
def _group() -> Iterator[None]:
    with start("fp32"):
        yield


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_takes_effect_between_steps(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Stopper(None, time.monotonic()) as stopper:
        stopper.check()
        os.kill(os.getpid(), number)
        stopper.check()
        with pytest.raises(StopRequested, match=number.name) as stopping:
            stopper.check()
        assert stopping.value.is_interrupt == (number == signal.SIGINT)
    assert signal.getsignal(number) is before


def test_the_first_request_counts_and_what_comes_after_the_last_step_does_not() -> None:
    with Stopper(None, time.monotonic()) as stopper:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        stopper.check()
        with pytest.raises(StopRequested, match="SIGUSR1"):
            stopper.check()
    with Stopper(None, time.monotonic()) as stopper:
        os.kill(os.getpid(), signal.SIGUSR1)
        stopper.check()
        stopper.settle()


def test_it_stops_before_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 5.0
    monkeypatch.setattr("fdtrain.stopping.time", SimpleNamespace(monotonic=lambda: now))

    def work(stopper: Stopper) -> None:
        nonlocal now
        for _ in range(100):
            stopper.check()
            now += 7

    with Stopper(1.0, began=5.0) as stopper, pytest.raises(StopRequested, match=r"train\.max_minutes are over"):
        work(stopper)
    # After 6 steps, at 47, there is no time for three more until 65; the ranks agree on it after one more.
    assert now == 5 + 7 * 7


def test_a_second_ctrl_c_ends_the_process_at_once() -> None:
    program = """
import time
from fdtrain.stopping import Stopper
with Stopper(None, 0.0):
    print("ready", flush=True)
    time.sleep(60) or [time.sleep(1) for _ in range(60)]
"""
    words = [sys.executable, "-c", program]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)  # torchrun's, of the same Ctrl-C
        time.sleep(3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr is not None
        assert "interrupted again: ending at once" in process.stderr.read()
