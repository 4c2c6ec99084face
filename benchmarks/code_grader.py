"""Does the code grader pass what is right, fail what is not, and contain what is hostile?

    python -m benchmarks.code_grader [--data FILE] [--jobs 2]

Every canonical solution of HumanEval must pass, as a whole function, in a fenced block among words,
and as the bare body that a model continues the prompt with; every emptied one must fail. Then come
answers that attack the grade or the machine: each must fail, within its limits, and leave nothing
behind. Exit status 1 when anything is not as it must be.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import socket
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
from tqdm import tqdm

from dollyllama.evaluation.code import Problem, run_tests
from dollyllama.evaluation.sandbox import Outcome, Status, available

DATA = Path(__file__).parents[2] / "shared" / "data" / "eval" / "humaneval.jsonl.gz"

#: What the hostile answers are to solve, wrongly.
VICTIM = Problem(
    "def add(a, b):\n    '''The sum.'''\n", "def check(f):\n    assert f(1, 2) == 3\n", "add"
)
WRONG = "def add(a, b):\n    return None\n"
RIGHT = "def add(a, b):\n    return a + b\n"

#: What each answer does before it would be tested. MARK is in the arguments or names of whatever it
#: leaves, OUTSIDE a file that does not exist, PORT one that listens outside of the sandbox, SECRET
#: a variable of the environment; RIGHT makes the answer right, for what must fail before.
HOSTILE = {
    "fork bomb": """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
""",
    "thread bomb": """
import threading, time
while True:
    threading.Thread(target=time.sleep, args=(10**6,)).start()
""",
    "memory bomb": """
kept = []
while True:
    kept.append(bytearray(1 << 20))
""",
    "memory bomb in every process": """
import os
for _ in range(9):
    try:
        os.fork()
    except OSError:
        pass
kept = []
while True:
    kept.append(bytearray(1 << 20))
""",
    "endless loop": "while True: pass",
    "endless sleep": "import time; time.sleep(10**6)",
    "signals ignored": """
import signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    pass
""",
    "deep recursion": "def deep(): deep()\ndeep()",
    "crash": "import ctypes; ctypes.string_at(0)",
    "file outside": "open('OUTSIDE', 'w').write('MARK')",
    "file in the library": "import os; open(os.path.dirname(os.__file__) + '/MARK.py', 'w')",
    "huge file": """
file = open('huge', 'wb')
while True:
    file.write(bytes(1 << 20))
""",
    "many files": """
import itertools
for number in itertools.count():
    open(str(number), 'w').close()
""",
    "socket to the network": "import socket; socket.create_connection(('1.1.1.1', 53), 3)",
    "socket to this machine": "import socket; socket.create_connection(('127.0.0.1', PORT), 3)",
    "socket to the hypervisor": "import socket; socket.socket(40).connect((2, 1024))",
    "/etc/passwd": "open('/etc/passwd').read()\nRIGHT",
    "the environment": "import os; os.environ['SECRET']\nRIGHT",
    "this project's files": "open('PROJECT').read()\nRIGHT",
    "kill the parent": "import os; os.kill(os.getppid(), 9)",
    "kill everybody": """
import os
for process in (-1, *range(99999)):
    try:
        os.kill(process, 9)
    except OSError:
        pass
""",
    "daemon": """
import os, time
for _ in range(2):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(10**6)
        os._exit(0)
""",
    "a shell": "import subprocess; subprocess.run(['/bin/sh', '-c', 'true'], check=True)\nRIGHT",
    "new namespaces": "import ctypes; assert not ctypes.CDLL(None).unshare(0x10000000)\nRIGHT",
    "sys.exit(0)": "import sys; sys.exit(0)",
    "os._exit(0)": "import os; os._exit(0)",
    "exit in the function": "import os\ndef add(a, b): os._exit(0)",
    "words of success": "print('passed', 'OK', '1 passed in 0.01s', sep='\\n')",
    "success on every descriptor": """
import os
for number in range(64):
    try:
        os.write(number, b'passed')
    except OSError:
        pass
os._exit(0)
""",
    "a check of its own": "def check(f): pass",
    "tests in a string": "tests = '''",
    "tests behind try": "try: pass\nexcept AssertionError: pass\ntry:",
    "tests in a child": "import os\nif os.fork(): os._exit(0)\nRIGHT",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    if (reason := available()) is not None:
        sys.exit(f"programs cannot be run here: {reason}")
    good = check_solutions(given.data, given.jobs)
    print()
    good &= check_hostile()
    sys.exit(0 if good else 1)


def check_solutions(data: Path, jobs: int) -> bool:
    with gzip.open(data, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    problems = [Problem(row["prompt"], row["test"], row["entry_point"]) for row in rows]
    solutions = [row["canonical_solution"] for row in rows]
    forms: dict[str, tuple[Callable[[Problem, str], str], Status]] = {
        "whole function": (lambda problem, body: problem.prompt + body, Status.passed),
        "fenced among words": (
            lambda problem, body: f"Here:\n```python\n{problem.prompt}{body}```\nIt is done.",
            Status.passed,
        ),
        "bare body": (lambda problem, body: body, Status.passed),
        "bare body, stripped": (lambda problem, body: body.strip(), Status.passed),
        "bare body, outdented": (lambda problem, body: textwrap.dedent(body), Status.passed),
        "emptied: pass": (lambda problem, body: problem.prompt + "    pass\n", Status.failed),
        "emptied: return None": (lambda problem, body: "    return None\n", Status.failed),
        "nothing": (lambda problem, body: "", Status.failed),
    }
    print(f"{'HumanEval':28}{'n':>5}{'as it must':>12}{'seconds':>9}  otherwise")
    good = True
    for name, (form, wanted) in forms.items():
        answers = [form(*pair) for pair in zip(problems, solutions, strict=True)]
        begun = time.monotonic()
        outcomes = run_all(answers, problems, name, jobs)
        seconds = time.monotonic() - begun
        other = Counter(str(o.status) for o in outcomes if o.status is not wanted)
        right = len(outcomes) - other.total()
        good &= not other
        otherwise = ", ".join(f"{n} {status}" for status, n in other.items())
        print(f"{name:28}{len(outcomes):5}{right:12}{seconds:9.1f}  {otherwise}".rstrip())
    return good


def run_all(
    answers: Sequence[str], problems: Sequence[Problem], name: str, jobs: int
) -> list[Outcome]:
    with ThreadPoolExecutor(jobs) as pool:
        outcomes = pool.map(run_tests, answers, problems)
        bar = tqdm(outcomes, desc=name, total=len(answers), leave=False, disable=None)
        return list(bar)


def check_hostile() -> bool:
    """Run each hostile answer; the machine must look as before and a right answer still pass."""
    mark = f"mark{os.getpid()}"
    good = True
    print(f"{'answer that tries':31}{'ends as':11}{'seconds':>8}  {'left':5} detail")
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        Path(folder).chmod(0o777)
        outside = Path(folder, "outside")
        os.environ["SECRET"] = mark
        words = {
            "OUTSIDE": str(outside),
            "MARK": mark,
            "PORT": str(server.getsockname()[1]),
            "PROJECT": str(Path(__file__).resolve()),
            "RIGHT": RIGHT,
        }
        for name, attack in HOSTILE.items():
            for word, value in words.items():
                attack = attack.replace(word, value)  # noqa: PLW2901
            before = {process.pid for process in psutil.process_iter()}
            begun = time.monotonic()
            outcome = run_tests(f"{WRONG}\n{attack}\n", VICTIM, seconds=3)
            seconds = time.monotonic() - begun
            left = [
                process
                for process in psutil.process_iter(["cmdline"])
                if process.pid not in before and "-s" in (process.info["cmdline"] or [])
            ]
            library = Path(os.__file__).parent / f"{mark}.py"
            contained = not left and not outside.exists() and not library.exists()
            contained &= outcome.status is not Status.passed and seconds < 3 + 5
            good &= contained
            verdict = "none" if contained else "LEFT"
            print(f"{name:31}{outcome.status:11}{seconds:8.1f}  {verdict:5} {outcome.detail[:70]}")
        server.setblocking(False)
        try:
            server.accept()
            good = False
            print("a connection from the sandbox arrived")
        except BlockingIOError:
            pass
    afterwards = run_tests(RIGHT, VICTIM)
    print(f"{'and then a right answer':31}{afterwards.status:11}")
    return good and afterwards.status is Status.passed


if __name__ == "__main__":
    main()
