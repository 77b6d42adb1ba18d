"""The threads: forks, limits, and tasks that are neither lost nor run twice."""

import resource
import subprocess
import sys

import numpy as np
import pytest

from ventoux.cpu import _kernels

FORK = """
import os, signal, sys, time
import numpy as np
from ventoux.cpu import _kernels

def norm(pool):
    x = np.arange(1, 64 * 256 + 1, dtype=np.float32).reshape(64, 256)
    out = np.empty_like(x)
    _kernels.rms_norm(pool, x, np.ones(256, np.float32), 1e-5, out)
    return out

pool = _kernels.Pool(3, "portable")
expected = norm(pool)
time.sleep(float(sys.argv[1]))
child = os.fork()
if child == 0:
    signal.alarm(20)  # a child that hangs is killed
    same = np.array_equal(norm(pool), expected) and len(os.listdir("/proc/self/task")) == 3
    del pool
    os._exit(0 if same else 1)
assert os.waitpid(child, 0)[1] == 0
assert np.array_equal(norm(pool), expected)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("idle", [0, 0.05], ids=["spinning", "asleep"])
def test_a_forked_child_has_threads_of_its_own(idle):
    subprocess.run([sys.executable, "-c", FORK, str(idle)], check=True, timeout=60)


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space")
def test_threads_that_cannot_be_started_are_an_error():
    code = "from ventoux.cpu import _kernels; _kernels.Pool(3000, 'portable')"
    limit = 2 << 30  # bytes; a thread's stack takes megabytes of address space
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert result.returncode == 1
    assert "RuntimeError: cannot start 2999 threads" in result.stderr


@pytest.mark.parametrize("threads", [0, -1])
def test_a_pool_needs_a_thread(threads):
    with pytest.raises(ValueError, match="at least one thread"):
        _kernels.Pool(threads, "portable")


def test_an_instruction_set_that_is_not_here_is_refused():
    with pytest.raises(ValueError, match="cannot run"):
        _kernels.Pool(1, "avx1024")


@pytest.mark.parametrize("rows", [64, 1040])
@pytest.mark.parametrize("threads", [2, 3, 7])
def test_every_task_runs_once(threads, rows):
    """Thousands of short rounds, more threads than cores, fewer tasks than threads, threads that come late, whose
    tasks others take: a lost or repeated task would show as a wrong sum."""
    pool = _kernels.Pool(threads, "portable")
    weight = _kernels.Weight(pool, "F32", 1, np.ones((rows, 1), np.float32).view(np.uint8))
    y, x = np.zeros((1, rows), np.float32), np.ones((1, 1), np.float32)
    for _ in range(3000):
        _kernels.linear(pool, x, [weight], [y], True, "f32")  # y += 1
    np.testing.assert_array_equal(y, np.full((1, rows), 3000))
