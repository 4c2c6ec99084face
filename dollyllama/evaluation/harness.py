"""Runs the parts of a program in the sandbox, one after the other, and reports. A script.

    python harness.py CHANNEL REPORT PARTS

CHANNEL: a descriptor with the parts and then the token, each behind its length in 8 bytes. Each is
read when it is its turn, so that the token is in this process's memory only after the program.
REPORT: a descriptor that gets the token when all parts have come to their end, else the error.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType


def main() -> None:
    channel, report, count = (int(argument) for argument in sys.argv[1:])
    del sys.argv[1:]
    process = os.getpid()

    def read() -> bytes:
        return os.read(channel, int.from_bytes(os.read(channel, 8), "big"))

    def say(kind: type[BaseException], error: BaseException, _: object) -> None:
        os.write(report, f"{kind.__name__}: {error}"[:300].encode("utf-8", "replace"))

    sys.excepthook = say
    # Not __main__, whose guarded lines are no part of an answer; dataclasses want a module.
    answer = sys.modules["answer"] = ModuleType("answer")
    for _ in range(count):
        source = read().decode("utf-8", "surrogatepass")
        exec(compile(source, "answer", "exec", dont_inherit=True), answer.__dict__)
    if os.getpid() == process:  # not a child that it forked
        os.write(report, read())
    os._exit(0)  # without waiting for threads


if __name__ == "__main__":
    main()
