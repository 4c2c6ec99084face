from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from dollyllama.evaluation import sandbox
from dollyllama.evaluation.sandbox import Outcome, Status, available, run_program

needs_sandbox = pytest.mark.skipif(available() is not None, reason=str(available()))
pytestmark = needs_sandbox


@pytest.mark.parametrize(
    ("program", "status", "detail"),
    [
        ("", Status.passed, ""),
        ("x = 1", Status.passed, ""),
        ("print('x' * 10**7)", Status.passed, ""),
        ("assert False", Status.failed, "AssertionError"),
        ("assert False, 'two\\nlines'", Status.failed, "AssertionError: two lines"),
        ("x = ", Status.failed, "SyntaxError"),
        ("x = 1\x00", Status.failed, "null"),
        ("x = '\ud800'", Status.failed, "UnicodeEncodeError"),
        ("raise KeyboardInterrupt", Status.failed, "KeyboardInterrupt"),
        ("raise ValueError('\\x1b[31m' + 'x' * 10**6)", Status.failed, "ValueError: \ufffd[31mxxx"),
        ("def f(): f()\nf()", Status.failed, "RecursionError"),
        ("import sys; sys.exit(0)", Status.left, "exit status 0"),
        ("import os; os._exit(0)", Status.left, "exit status 0"),
        ("import os; os._exit(7)", Status.left, "exit status 7"),
        ("raise SystemExit", Status.left, "exit status 0"),
        ("import os; os.abort()", Status.killed, "SIGABRT"),
        ("import ctypes; ctypes.string_at(0)", Status.killed, "SIGSEGV"),
        ("x = []\nwhile 1: x.append(bytearray(1 << 20))", Status.failed, "MemoryError"),
        ("assert input()", Status.failed, "EOFError"),
        ("import dollyllama", Status.failed, "ModuleNotFoundError"),
        ("open('own', 'w').write('x'); assert open('own').read() == 'x'", Status.passed, ""),
        ("import tempfile; tempfile.TemporaryFile()", Status.passed, ""),
        ("import threading; threading.Thread(target=print).start()", Status.passed, ""),
        ("import asyncio\nasync def f(): pass\nasyncio.run(f())", Status.passed, ""),
        ("assert __name__ != '__main__'", Status.passed, ""),
        (
            "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int' = 1\nA()",
            Status.passed,
            "",
        ),
    ],
)
def test_how_a_program_ends_is_told(program: str, status: Status, detail: str) -> None:
    outcome = run_program(program)
    assert outcome.status is status, outcome
    assert detail in outcome.detail
    assert len(outcome.detail) <= 300
    assert outcome.detail.isprintable()


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time; time.sleep(10**6)",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "import signal\nsignal.signal(15, signal.SIG_IGN)\nwhile True: pass",
    ],
)
def test_a_program_without_end_is_ended(program: str) -> None:
    assert run_program(program, seconds=1) == Outcome(Status.timed_out, "after 1 s")


def test_parts_share_their_names_and_cannot_swallow_each_other() -> None:
    assert run_program("x = 1", "assert x == 1").status is Status.passed
    assert run_program("x = 1", "assert x == 2").status is Status.failed
    assert run_program("x = '''", "assert False", "'''").status is Status.failed
    assert run_program("try: pass\nfinally:", "    assert False").status is Status.failed


@pytest.mark.parametrize(
    "escape",
    [
        "print('passed')",
        "import sys; sys.excepthook = lambda *_: None",
        "import os\nif os.fork(): os._exit(0)\nx = 1",
        (
            "import os\nfor n in range(3, 64):\n"
            "    try: os.write(n, b'passed')\n    except OSError: pass\nos._exit(0)"
        ),
        "import builtins; builtins.AssertionError = KeyError",
        "import atexit, os; atexit.register(os._exit, 0)",
    ],
)
def test_success_is_proved_and_not_claimed(escape: str) -> None:
    assert run_program(escape, "assert 'x' in globals() and False").status is not Status.passed


@pytest.mark.parametrize(
    "attempt",
    [
        "open('/written', 'w')",
        "open(os.__file__, 'a')",
        "open('/etc/passwd')",
        "open('/proc/1/environ')",
        "os.environ['PATH']",
        "os.kill(os.getppid(), 9)\nraise OSError",
        "socket.socket()",
        "socket.socket(socket.AF_UNIX)",
        "socket.socket(40)",
        "os.mkfifo('/x')",
        "os.chroot('.')",
        "os.setuid(0)",
        "os.setgid(0)",
        "os.nice(-1)",
        "bytearray(1 << 30)",
        "open('huge', 'wb').write(bytes(17 << 20))",
        "subprocess.run(['/bin/sh', '-c', 'true'])",
        "[os.fork() or time.sleep(9) for _ in range(4)]",
        "[open('own') for _ in range(100)]",
        "ctypes.CDLL(None).unshare(0x10000000) and 1 / 0",
        "ctypes.CDLL(None).mount(b'none', b'.', b'tmpfs', 0, None) and 1 / 0",
        "ctypes.CDLL(None).ptrace(16, 1, 0, 0) and 1 / 0",
    ],
)
def test_what_a_program_must_not_do_it_cannot(attempt: str) -> None:
    """Each fails by itself, the attempts by ctypes by dividing by zero."""
    prepared = "import ctypes, os, socket, subprocess, time\nopen('own', 'w').close()"
    outcome = run_program(prepared, attempt, seconds=5)
    assert outcome.status is Status.failed, outcome
    errors = ("PermissionError", "OSError", "FileNotFoundError", "KeyError", "MemoryError")
    assert outcome.detail.startswith((*errors, "BlockingIOError", "ZeroDivisionError")), outcome


def test_what_a_program_leaves_behind_ends_with_it() -> None:
    left = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(10**6)\n"
        "    os._exit(0)\n"
    )
    before = {process.pid for process in psutil.process_iter()}
    assert run_program(left).status is Status.passed
    own = [p for p in psutil.process_iter(["cmdline"]) if p.pid not in before]
    assert not [p for p in own if "-s" in (p.info["cmdline"] or [])]


def test_nothing_is_kept_from_run_to_run() -> None:
    program = "import os\nassert not os.listdir()\nopen('own', 'w').close()"
    assert run_program(program).status is Status.passed
    assert run_program(program).status is Status.passed


def test_files_of_the_machine_are_not_there(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    tmp_path.chmod(0o777)
    outcome = run_program(f"open({str(secret)!r})")
    assert outcome.detail.startswith("FileNotFoundError")


def test_descriptors_of_the_caller_are_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        os.set_inheritable(server.fileno(), True)
        outcome = run_program(
            "import os\nopened = 0\nfor n in range(3, 4096):\n"
            "    try: os.fstat(n); opened += 1\n    except OSError: pass\nassert opened == 2"
        )
    assert outcome.status is Status.passed, outcome


def test_the_same_program_gives_the_same_outcome() -> None:
    program = "raise ValueError(hash('a'), list({'a', 'b', 'c'}))"
    assert run_program(program) == run_program(program)


def test_it_is_refused_with_the_reason_where_it_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    available.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"^programs cannot be run here: .* not darwin"):
            run_program("x = 1")
    finally:
        available.cache_clear()


def test_a_jail_that_cannot_be_built_says_which_step_failed() -> None:
    """In a user namespace without users, no further one can be made."""
    program = "from dollyllama.evaluation.sandbox import available; print(available())"
    root = Path(sandbox.__file__).parents[2]
    nested = subprocess.run(
        ["unshare", "--user", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=root,
        check=False,
    )
    assert nested.stdout.startswith("the sandbox cannot be built ("), nested


def test_a_guarantee_that_does_not_hold_refuses_the_sandbox(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox, "_PROBE", sandbox._PROBE.replace('"dev", ', '"dev", "usr", '))
    available.cache_clear()
    try:
        assert available() == ("the sandbox does not hold (failed: AssertionError: it sees files)")
    finally:
        available.cache_clear()
