"""Runs a Python program that nobody has read, so that it can hurt nothing.

On Linux, of namespaces (user, mount, process, network, System V, host name), resource limits and a
filter of system calls; ``jail`` builds it, for root and for others alike. The program is nobody, on
a root that holds the interpreter's standard library and the system's libraries and cannot be
written, with an empty folder in memory as its own. No network and no sockets at all, no /proc, no
devices, no environment, no descriptor, input or output of the caller's. All that it starts ends
with it.

What ``passed`` means: the program came to its end, which a token proves that the harness reads
after it. Leaving early with status 0 or printing words of success proves nothing. A program that
searches its own interpreter for the channel can find the token: one process cannot keep a secret
from the code that runs in it. Such a program fools its grade, and still cannot leave the sandbox.
The limits do not stop a fault of the kernel.
"""

from __future__ import annotations

import enum
import functools
import json
import os
import platform
import re
import secrets
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

#: What the interpreter needs beside its own folder, where it is there.
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
_MACHINES = ("x86_64", "aarch64")
#: The program's own folder: under no name that an interpreter's could have.
_FOLDER = "/answer"
_JAIL = Path(__file__).with_name("jail.py")
_HARNESS = Path(__file__).with_name("harness.py")

#: The jail keeps the time itself; should it not, it is killed so many seconds later.
_GRACE_SECONDS = 10


class Status(StrEnum):
    """How a program ended.

    passed: at its end. failed: by an exception. left: before its end, by itself. killed: by a
    signal, a limit's or its own.
    """

    passed = enum.auto()
    failed = enum.auto()
    left = enum.auto()
    timed_out = enum.auto()
    killed = enum.auto()


@dataclass(frozen=True, slots=True)
class Outcome:
    """detail: one line, written in part by the program: not to be trusted. Empty when passed."""

    status: Status
    detail: str = ""


def run_program(
    *parts: str,
    seconds: float = 10,
    memory_mib: int = 512,
    processes: int = 4,
    disk_mib: int = 16,
) -> Outcome:
    """Run the parts of a program in one namespace, in their order, in the sandbox.

    A part is compiled by itself and read when the one before has ended, so that an answer cannot
    swallow the tests behind it. The module is not ``__main__``; hashes of strings are the same in
    every run. seconds: of wall time, and of processor time for each process. memory_mib: of address
    space for each process. processes: at one time, threads count. disk_mib: in the folder, and in
    one file. ValueError where the sandbox cannot be had, OSError where the machine is then too full
    to build it.
    """
    if (reason := available()) is not None:
        raise ValueError(f"programs cannot be run here: {reason}")
    return _run(
        parts, seconds=seconds, memory_mib=memory_mib, processes=processes, disk_mib=disk_mib
    )


@functools.cache
def available() -> str | None:
    """Why the sandbox cannot be had here, or None: a probe in it tried to break each promise."""
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        needed = " or ".join(_MACHINES)
        return f"the sandbox is Linux's, on {needed}, not {sys.platform}'s on {platform.machine()}"
    try:
        probed = _run((_PROBE,), seconds=30, memory_mib=256, processes=2, disk_mib=2)
    except OSError as error:
        return f"the sandbox cannot be built ({error})"
    if probed.status is not Status.passed:
        return f"the sandbox does not hold ({probed.status}: {probed.detail})"
    return None


def _run(
    parts: tuple[str, ...], *, seconds: float, memory_mib: int, processes: int, disk_mib: int
) -> Outcome:
    """Run in the jail. OSError with the reason where it cannot be built."""
    token = secrets.token_hex(16).encode()
    prefix = Path(sys.base_prefix).resolve()
    python = f"{prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    channel = os.memfd_create("program")
    received, report = os.pipe()
    os.set_blocking(received, False)
    try:
        for part in (*(part.encode("utf-8", "surrogatepass") for part in parts), token):
            _write_all(channel, len(part).to_bytes(8, "big") + part)
        os.lseek(channel, 0, os.SEEK_SET)
        harness = _HARNESS.read_text(encoding="utf-8")
        numbers = [str(number) for number in (channel, report, len(parts))]
        settings = {
            # As -I, but for the seed of hashes, which an isolated interpreter does not read.
            "command": [python, "-P", "-s", "-S", "-c", harness, *numbers],
            "environment": {"PYTHONHASHSEED": "0", "TMPDIR": _FOLDER},
            "readable": _readable(str(prefix)),
            "folder": _FOLDER,
            "seconds": seconds,
            "memory_mib": memory_mib,
            "processes": processes,
            "disk_mib": disk_mib,
        }
        with subprocess.Popen(
            [python, "-I", "-S", _JAIL, json.dumps(settings)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(channel, report),
            cwd="/",
            env={},
            start_new_session=True,
        ) as jail:
            try:
                said, trouble = jail.communicate(timeout=seconds + _GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                return Outcome(Status.timed_out, f"after {seconds:g} s")
            finally:
                if jail.poll() is None:
                    os.killpg(jail.pid, signal.SIGKILL)
        reported = b""
        with suppress(BlockingIOError):
            reported = os.read(received, 4096)
    finally:
        for descriptor in (channel, received, report):
            os.close(descriptor)
    line = _one_line(said.partition(b"\n")[0])
    if line == "timed out":
        return Outcome(Status.timed_out, f"after {seconds:g} s")
    if not line.startswith("ended "):
        why = line.removeprefix("refused ") or _one_line(trouble)
        raise OSError(why or f"it ended with status {jail.returncode}")
    if reported == token:
        return Outcome(Status.passed)
    if reported:
        return Outcome(Status.failed, _one_line(reported))
    return _ended(int(line.removeprefix("ended ")), seconds)


def _ended(status: int, seconds: float) -> Outcome:
    if not os.WIFSIGNALED(status):
        return Outcome(Status.left, f"with exit status {os.WEXITSTATUS(status)}")
    number = signal.Signals(os.WTERMSIG(status))
    if number is signal.SIGXCPU:
        return Outcome(Status.timed_out, f"after {seconds:g} s")
    return Outcome(Status.killed, f"by {number.name}")


def _readable(prefix: str) -> list[str]:
    """The folders on the program's root, none within another; links among them stay links."""
    paths = [path for path in dict.fromkeys((prefix, *_LIBRARIES)) if Path(path).exists()]
    return [path for path in paths if not any(path.startswith(f"{other}/") for other in paths)]


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _one_line(said: bytes) -> str:
    text = re.sub(r"\s+", " ", said.decode("utf-8", "replace")).strip()
    return "".join(c if c.isprintable() else "�" for c in text[:300])


#: Tries what must not be possible; needs 2 processes, 256 MiB and 2 MiB of disk.
_PROBE = """
import ctypes, os, signal, socket, time

def check(claim, holds):
    if not holds:
        raise AssertionError(claim)

def refuse(claim, attempt, *arguments):
    try:
        attempt(*arguments)
    except (OSError, MemoryError):
        return
    raise AssertionError(claim)

def write(path, size=1):
    with open(path, "wb") as file:
        file.write(bytes(size))

def start(count):
    for _ in range(count):
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)

def is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True

def leave(flags):
    if ctypes.CDLL(None).unshare(flags) != 0:
        raise OSError

check("it is root", 0 not in os.getresuid() + os.getresgid() + tuple(os.getgroups()))
check("it sees an environment", set(os.environ) <= {"PYTHONHASHSEED", "TMPDIR", "LC_CTYPE"})
check("its folder is not empty", os.getcwd() == "/answer" and not os.listdir())
check("it sees files", not {"dev", "etc", "home", "proc", "sys", "var"} & set(os.listdir("/")))
check("it has descriptors", sum(map(is_open, range(3, 4096))) == 2)
check("it has input", os.read(0, 1) == b"")
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK, 38, 40):
    refuse(f"it opens a socket of family {family}", socket.socket, family)
for folder in ("", "/lib", os.path.dirname(os.__file__)):
    refuse(f"it writes in {folder or '/'}", write, f"{folder}/written")
write("own")
refuse("it writes without limit", write, "own", 3 << 20)
os.remove("own")
refuse("it takes memory without limit", bytearray, 512 << 20)
for flags in (0x10000000, 0x10020000, 0x40000000):
    refuse("it gets namespaces of its own", leave, flags)
check("it sees processes", os.getppid() == 1 and os.getpgid(0) == os.getpid())
try:
    os.kill(1, signal.SIGKILL)  # the probe does not live to tell when this works
except OSError:
    pass
refuse("it starts processes without limit", start, 2)
"""
