"""The worker processes: results in order, few at a time, and no death of one of them that makes the parent wait."""

import os
import signal
import subprocess
import sys
import time

import pytest

from cramming_train.data.parallel import Workers
from cramming_train.errors import RunError, UsageError


def squared_slowly(number: int) -> tuple[int, int]:
    time.sleep(0.02 * (number % 3))  # later items finish first
    return number * number, os.getpid()


def dies(number: int) -> int:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def refuses(number: int) -> int:
    if number == 5:
        raise UsageError("number 5")
    return number


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_order(processes):
    with Workers(processes) as workers:
        results = list(workers.map(squared_slowly, range(31)))
    assert [square for square, _ in results] == [n * n for n in range(31)]
    pids = {pid for _, pid in results}
    assert pids == {os.getpid()} if processes == 1 else len(pids) == processes and os.getpid() not in pids


@pytest.mark.parametrize("processes", [1, 3])
def test_inputs_are_taken_as_they_are_needed(processes):
    """A corpus does not fit into a queue."""
    taken = 0

    def inputs():
        nonlocal taken
        while taken < 100:
            taken += 1
            yield taken

    with Workers(processes) as workers:
        for done, _ in enumerate(workers.map(abs, inputs()), start=1):
            assert taken - done <= 2 * processes + 1
    assert taken == 100


@pytest.mark.parametrize("processes", [1, 2])
def test_errors_come_through(processes):
    with pytest.raises(UsageError, match="number 5"), Workers(processes) as workers:
        list(workers.map(refuses, range(20)))


def test_default_is_a_process_a_core():
    assert Workers().processes == len(os.sched_getaffinity(0))
    assert Workers(3).processes == 3


def test_killed_worker():
    """As the kernel does when memory runs out."""
    with pytest.raises(RunError, match="a worker process was killed.*fewer --processes"), Workers(2) as workers:
        list(workers.map(dies, range(20)))


_KILLED_WHILE_SENDING = """
import os, signal, threading, time
from cramming_train.data.parallel import Workers
from cramming_train.errors import RunError

class Last:
    def __reduce__(self):  # the end of packing the result; sending it begins, and takes a while
        threading.Timer(0.005, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return int, ()

def work(number):
    return (os.urandom(1 << 20) * 150, Last()) if number == 3 else number

try:
    with Workers(2) as workers:
        list(workers.map(work, range(20)))
except RunError as error:
    print(error)
"""


def test_worker_killed_while_it_sends_its_result():
    """Half a message lies in the pipe, and nobody will ever write the other half."""
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED_WHILE_SENDING], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert "a worker process was killed" in process.communicate(timeout=20)[0]
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
