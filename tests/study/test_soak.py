"""A long sweep whose cells, files and own process are struck at random ends as one left alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.study.test_kill import effects, family_of, start

#: Four variants by fifty seeds, cells of a few seconds each.
SWEEP = (
    *("ablation=baseline,rank_8,no_dropout,attention_only", "seeds=50", "tracking=files"),
    *("trainer.max_steps=2", "trainer.checkpoint_steps=1", "data.max_rows=64"),
    *("evaluation.loss_examples=4", "evaluation.generate_examples=0"),
)
CELLS = 200
#: Seconds between two strikes, and how many there are.
PAUSE, STRIKES = (4.0, 12.0), 40
#: A sweep that takes so many seconds hangs.
HANGS = 3600
#: Of the sweep's own process, in bytes: what it may grow by between a tenth of its cells and all.
GROWTH = 64 * 2**20


def finished(folder: Path) -> list[Path]:
    """The folders of cells that have ended well."""

    def status(path: Path) -> str | None:
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["status"])
        except (OSError, ValueError):
            return None

    return [path.parent for path in folder.glob("*/result.json") if status(path) == "finished"]


class Strikes:
    """What is done to a sweep, each kind drawn with the moment."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.draw = folder, random.Random(0)
        self.made: Counter[str] = Counter()

    def strike(self, sweep: subprocess.Popen[bytes]) -> None:
        kinds = [self.kill_a_cell, self.kill_a_cell, self.kill_the_sweep]
        kinds += [self.truncate_a_result, self.flip_a_byte, self.remove_a_cell]
        kind = self.draw.choice(kinds)
        # What was to be struck may be gone by now, or being made anew.
        with suppress(psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
            if kind(sweep):
                self.made[kind.__name__] += 1

    def kill_a_cell(self, sweep: subprocess.Popen[bytes]) -> bool:
        # The fork server and the cells, which are its children, show the same command.
        forks = [each for each in family_of(sweep) if "forkserver" in " ".join(each.cmdline())]
        servers = {each.pid for each in forks}
        cells = [each for each in forks if each.ppid() in servers]
        if not cells:
            return False
        os.kill(self.draw.choice(cells).pid, signal.SIGKILL)
        return True

    def kill_the_sweep(self, sweep: subprocess.Popen[bytes]) -> bool:
        family = family_of(sweep)
        sweep.kill()
        sweep.wait(HANGS)
        _, alive = psutil.wait_procs(family, timeout=60)
        assert alive == []
        return True

    def truncate_a_result(self, sweep: subprocess.Popen[bytes]) -> bool:
        return self.damage("result.json", lambda content, place: content[:place])

    def flip_a_byte(self, sweep: subprocess.Popen[bytes]) -> bool:
        def flip(content: bytes, place: int) -> bytes:
            return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]

        return self.damage("losses.jsonl", flip)

    def damage(self, name: str, how: Callable[[bytes, int], bytes]) -> bool:
        if not (cells := finished(self.folder)):
            return False
        path = self.draw.choice(sorted(cells)) / name
        content = path.read_bytes()
        path.write_bytes(how(content, self.draw.randrange(len(content))))
        return True

    def remove_a_cell(self, sweep: subprocess.Popen[bytes]) -> bool:
        if not (cells := finished(self.folder)):
            return False
        shutil.rmtree(self.draw.choice(sorted(cells)))
        return True


@pytest.mark.slow
def test_two_hundred_cells_under_random_strikes_end_as_left_alone(tmp_path: Path) -> None:
    whole = tmp_path / "alone" / "sweep"
    whole.parent.mkdir()
    process = start(whole, tmp_path / "alone.txt", SWEEP)
    early = late = 0
    while process.poll() is None:
        time.sleep(2.0)
        try:
            own = psutil.Process(process.pid).memory_info().rss
        except psutil.NoSuchProcess:
            break
        done = len(finished(whole))
        early = max(early, own) if done <= CELLS / 10 else early
        late = max(late, own)
    assert process.wait(HANGS) == 0, (tmp_path / "alone.txt").read_text(encoding="utf-8")[-2000:]
    print(f"own process: {early / 2**20:.0f} MiB until a tenth is done, {late / 2**20:.0f} at most")
    assert len(finished(whole)) == CELLS
    assert late - early < GROWTH

    struck = tmp_path / "struck" / "sweep"
    struck.parent.mkdir()
    strikes = Strikes(struck)
    process = start(struck, tmp_path / "struck.txt", SWEEP)
    statuses: Counter[int] = Counter()
    while strikes.made.total() < STRIKES:
        deadline = time.monotonic() + strikes.draw.uniform(*PAUSE)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        if process.poll() is None:
            strikes.strike(process)
        if process.poll() is not None:
            statuses[process.returncode] += 1
            process = start(struck, tmp_path / "struck.txt", SWEEP)
    statuses[process.wait(HANGS)] += 1
    # What was killed or damaged is tried again by the same command, and again if it failed late.
    for _ in range(3):
        process = start(struck, tmp_path / "struck.txt", SWEEP)
        statuses[process.wait(HANGS)] += 1
        if process.returncode == 0:
            break
    print(f"strikes {dict(strikes.made)}, exit statuses {dict(statuses)}")
    assert len(strikes.made) == 5
    assert process.returncode == 0
    assert set(statuses) <= {0, 1, -signal.SIGKILL}
    assert len(finished(struck)) == CELLS
    assert effects(struck) == effects(whole)
    _, alive = psutil.wait_procs(left_in(tmp_path), timeout=60)  # helpers end behind the sweep
    assert alive == []


def left_in(folder: Path) -> list[psutil.Process]:
    """Processes at work in ``folder`` or below it."""
    left = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(folder):
                left.append(process)
    return left
