import subprocess
import sys
import time

import psutil

from worker.runners import Runner, runner_environment


def test_a_runner_sees_no_setting_of_the_deployment() -> None:
    found = runner_environment({"PATH": "/bin", "LETHE_DATABASE__URL": "postgresql://secret", "AWS_SECRET_ACCESS_KEY": "x"})
    assert found["PATH"] == "/bin"
    assert not any(name.startswith(("LETHE_", "AWS_")) for name in found)


def run(code: str) -> Runner:
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    return Runner(process)


def test_a_runner_that_writes_garbage_is_killed() -> None:
    runner = run("print('garbage', flush=True); import time; time.sleep(60)")
    assert runner.next_frame(10.0) is None
    assert runner.kill() == -9


def test_the_end_of_a_runner_is_seen_as_the_end_of_its_frames() -> None:
    runner = run("""print('{"type": "done", "name": "train", "seconds": 1.0}', flush=True)""")
    frame = runner.next_frame(10.0)
    assert frame is not None
    assert frame.type == "done"
    assert runner.next_frame(10.0) is None
    runner.kill()


def test_killing_a_runner_takes_its_children_with_it() -> None:
    code = "import subprocess, sys; c = subprocess.Popen(['sleep', '60']); print(c.pid, file=sys.stderr, flush=True); c.wait()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert process.stderr is not None
    child = int(process.stderr.readline())
    Runner(process).kill()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child outlived its runner"


def test_a_frame_to_a_runner_that_is_gone_is_told_and_not_raised() -> None:
    from services.jobs.messages import CancelFrame

    runner = run("pass")
    assert runner.next_frame(10.0) is None
    runner.process.wait()
    assert [runner.send(CancelFrame()) for _ in range(2)][-1] is False
    runner.kill()


def test_a_runner_with_little_memory_ends_an_allocation_as_a_lack_of_resources() -> None:
    code = (
        "from worker.runner import failure, limit\n"
        "import torch\n"
        "limit(24 * 1024**3)\n"
        "try:\n    torch.empty(64 * 1024**3, dtype=torch.uint8)\n"
        "except Exception as error:\n    print(failure('unlearn', error).retry_class)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "resource", done.stderr
