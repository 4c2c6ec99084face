"""Builds the jail that ``sandbox`` describes and runs a program in it. A script of its own.

It imports nothing but the standard library, because it runs under ``python -I -S``. Four processes:
the outermost gives the next one its users; that one leaves the machine's namespaces and builds the
root; the third is the first process of the new process namespace, keeps the time and says how the
fourth ended, which is the program. When the third ends, the kernel ends all that is left in there.

The first line of output counts: ``ended STATUS`` (as of ``waitpid``), ``timed out``, or ``refused
WHY``.
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import platform
import resource
import select
import signal
import struct
import sys
from pathlib import Path
from typing import Any

_NEW = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000
"""CLONE_NEW: user, mount, process, network, System V and host name namespaces."""

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_SLAVE = 2, 4, 8, 16384, 1 << 19
_MNT_DETACH = 2
_OPEN_TREE_CLONE, _MOVE_FROM_DESCRIPTOR = 1, 4
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_READ_ONLY = 1 | 2 | 4  # MOUNT_ATTR_RDONLY, _NOSUID, _NODEV

#: System calls without a function in the C library; the first three have one number everywhere.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

#: What the namespaces do not cover, refused to the program by number: socket (of virtual machines
#: and the kernel's own), io_uring_setup (opens sockets by another way), ptrace, bpf,
#: perf_event_open, userfaultfd, add_key, request_key, keyctl.
_REFUSED = {
    "x86_64": (41, 425, 101, 321, 298, 323, 248, 249, 250),
    "aarch64": (198, 425, 117, 280, 241, 282, 217, 218, 219),
}
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

#: Who the program is: inside, and outside where root starts it (nobody).
_USER, _NOBODY = 1, 65534

_library = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    settings = json.loads(sys.argv[1])
    os.umask(0o022)
    status = os.dup(1)  # is closed where the program begins
    for name in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(name, signal.SIG_DFL)
    _guarded(status, _outermost, settings, status)


def _guarded(status: int, step: Any, *arguments: Any) -> None:
    """Run a process's part to its end; an error becomes the line that says why not."""
    try:
        step(*arguments)
    except OSError as error:
        os.write(status, f"refused {error.filename or ''} {error.strerror}\n".encode())
        os._exit(1)
    os._exit(0)


def _outermost(settings: dict[str, Any], status: int) -> None:
    _die_with_parent()
    mapped, map_now = os.pipe()
    left, leave = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(map_now)
        os.close(left)
        _guarded(status, _build, settings, status, mapped, leave)
    os.close(leave)
    if os.read(left, 1):
        _map_users(child)
        os.write(map_now, b"x")
    os.waitpid(child, 0)


def _map_users(child: int) -> None:
    """Let root be root until the program begins, which is nobody; others stay who they are."""
    if os.getuid() == 0:
        users = groups = f"0 0 1\n{_USER} {_NOBODY} 1\n"
    else:
        _write(f"/proc/{child}/setgroups", "deny")
        users, groups = f"{_USER} {os.getuid()} 1\n", f"{_USER} {os.getgid()} 1\n"
    _write(f"/proc/{child}/uid_map", users)
    _write(f"/proc/{child}/gid_map", groups)


def _build(settings: dict[str, Any], status: int, mapped: int, leave: int) -> None:
    _check("unshare", _library.unshare(_NEW))
    os.write(leave, b"x")
    os.close(leave)
    if not os.read(mapped, 1):
        os._exit(1)  # the parent said why
    _die_with_parent()
    # No further user namespaces: they would give the program capabilities of its own.
    _write("/proc/sys/user/max_user_namespaces", "0")
    _build_root(settings["readable"], settings["folder"], disk_mib=settings["disk_mib"])
    first = os.fork()
    if first == 0:
        _guarded(status, _watch, settings, status)
    os.waitpid(first, 0)


def _build_root(readable: list[str], folder: str, *, disk_mib: int) -> None:
    """Make a root of ``readable``, not to be written, and the empty ``folder`` in memory."""
    _mount(None, "/", None, _MS_REC | _MS_SLAVE)
    links = {path: Path(path).readlink() for path in readable if Path(path).is_symlink()}
    trees = {path: _clone_tree(path) for path in readable if path not in links}
    nothing = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    # The trees were cloned before, so it does not matter what this hides.
    _mount("tmpfs", "/tmp", "tmpfs", nothing, "size=1m,mode=755")
    for path, target in links.items():
        place = Path(f"/tmp{path}")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)
    for path, tree in trees.items():
        place = Path(f"/tmp{path}")
        place.mkdir(parents=True, exist_ok=True)
        _call(path, _MOVE_MOUNT, tree, b"", _AT_FDCWD, bytes(place), _MOVE_FROM_DESCRIPTOR)
        os.close(tree)
    Path(f"/tmp{folder}").mkdir()
    options = f"size={disk_mib}m,nr_inodes=1024,mode=700,uid={_USER},gid={_USER}"
    _mount("tmpfs", f"/tmp{folder}", "tmpfs", nothing, options)
    os.chdir("/tmp")
    # The old root comes to lie on the new one and is taken away (pivot_root(2), NOTES).
    _call("pivot_root", _PIVOT_ROOT[platform.machine()], b".", b".")
    _check("umount", _library.umount2(b".", _MNT_DETACH))
    os.chdir("/")
    _set_read_only(_AT_FDCWD, b"/", 0)


def _clone_tree(path: str) -> int:
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE
    tree = _call(path, _OPEN_TREE, _AT_FDCWD, path.encode(), flags)
    _set_read_only(tree, b"", _AT_EMPTY_PATH | _AT_RECURSIVE)
    return tree


def _set_read_only(descriptor: int, path: bytes, flags: int) -> None:
    attributes = struct.pack("QQQQ", _READ_ONLY, 0, 0, 0)
    _call("mount_setattr", _MOUNT_SETATTR, descriptor, path, flags, attributes, len(attributes))


def _watch(settings: dict[str, Any], status: int) -> None:
    _die_with_parent()
    _check("prctl", _library.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))  # not to be traced
    program = os.fork()
    if program == 0:
        _guarded(status, _become_program, settings)
    ended = select.poll()
    ended.register(os.pidfd_open(program), select.POLLIN)
    if ended.poll(settings["seconds"] * 1000):
        os.write(status, f"ended {os.waitpid(program, 0)[1]}\n".encode())
    else:
        os.write(status, b"timed out\n")


def _become_program(settings: dict[str, Any]) -> None:
    os.setsid()  # out of the group that it could signal
    os.chdir(settings["folder"])
    os.dup2(0, 1)
    os.dup2(0, 2)
    root = os.getuid() == 0
    if root:
        os.setgroups([])
    os.setresgid(_USER, _USER, _USER)
    os.setresuid(_USER, _USER, _USER)
    disk, memory = settings["disk_mib"] << 20, settings["memory_mib"] << 20
    for what, wanted in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, math.ceil(settings["seconds"]) + 1),
        # Two more of that user stand outside, where it is not root who starts it.
        (resource.RLIMIT_NPROC, settings["processes"] + (0 if root else 2)),
        (resource.RLIMIT_FSIZE, disk),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(what, (limit, limit))
    _check("prctl", _library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _refuse_calls()
    # The last of its capabilities go here, as it is no root.
    os.execve(settings["command"][0], settings["command"], settings["environment"])


def _refuse_calls() -> None:
    """A filter of system calls (seccomp(2)): those of _REFUSED fail with EPERM."""
    machine = platform.machine()
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    kill, allow, refuse = 0x80000000, 0x7FFF0000, 0x00050000 | errno.EPERM
    refused = _REFUSED[machine]
    lines = [
        (load, 0, 0, 4),  # the architecture
        (equal, 1, 0, _AUDIT_ARCH[machine]),
        (answer, 0, 0, kill),
        (load, 0, 0, 0),  # the number; x32's have a bit of their own
        (at_least, len(refused) + 1, 0, 0x40000000),
        *((equal, len(refused) - n, 0, number) for n, number in enumerate(refused)),
        (answer, 0, 0, allow),
        (answer, 0, 0, refuse),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    program = struct.pack("HxxxxxxP", len(lines), ctypes.addressof(code))
    _check("seccomp", _library.prctl(_PR_SET_SECCOMP, 2, program, 0, 0))


def _die_with_parent() -> None:
    _check("prctl", _library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, options: str | None = None
) -> None:
    given = [None if text is None else text.encode() for text in (source, target, kind, options)]
    _check("mount", _library.mount(*given[:3], ctypes.c_ulong(flags), given[3]))


def _call(what: str, number: int, *arguments: int | bytes) -> int:
    given = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return _check(what, _library.syscall(ctypes.c_long(number), *given))


def _check(what: str, result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()
