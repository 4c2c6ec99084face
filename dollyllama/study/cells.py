"""One cell of a sweep: its folder, what can be taken from cells that are done, and its run.

A cell's folder is named by its variant, its seed and its fingerprint, so the same command finds it
again, and another config or other code never meets it.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dollyllama import config, record, remote
from dollyllama.explain import one_line
from dollyllama.files import locked, read_json_lines, read_signed_json, write_signed_json
from dollyllama.redact import redact
from dollyllama.study.identity import fingerprints
from dollyllama.study.isolate import GRACE_SECONDS, End, Ended, run_isolated
from dollyllama.tracking import CELL_FILE

LOG_FILE = "log.txt"
#: Characters of a part of a folder's name.
_LONGEST = 80
#: Files of a finished cell that another sweep's copy does without: W&B has logged the run already.
_NOT_COPIED = shutil.ignore_patterns("wandb", "checkpoints", CELL_FILE, ".*")


@dataclass(frozen=True, slots=True)
class Planned:
    """A cell to be: ``training`` is the fingerprint of what decides its adapter alone."""

    folder: str
    variant: str
    seed: int
    fingerprint: str
    training: str
    overrides: list[str]


def plan_cell(run: config.Run, overrides: Sequence[str]) -> Planned:
    """Name the cell that a run of a sweep is, told by its overrides (those of the axes)."""
    key, training = fingerprints(run)
    variant = variant_name(overrides)
    return Planned(
        folder=f"{slug(variant)}.seed_{run.seed}.{key[:8]}",
        variant=variant,
        seed=run.seed,
        fingerprint=key,
        training=training,
        overrides=list(overrides),
    )


def variant_name(overrides: Sequence[str]) -> str:
    """What a variant is called: its ablations by their names, other keys as they were given."""
    parts = []
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key == "ablation":
            parts += [name.strip() for name in value.strip("[]").split(",")]
        elif key != "seed":
            parts.append(override)
    changes = [part for part in parts if part != "baseline"]
    return "+".join(changes) or "baseline"


def slug(text: str) -> str:
    """``text`` as part of a folder's name, the same for the same text."""
    plain = re.sub(r"[^A-Za-z0-9._+=-]+", "_", text).strip("_.") or "cell"
    if len(plain) <= _LONGEST:
        return plain
    return f"{plain[: _LONGEST - 9]}-{config.fingerprint(text)[:8]}"


def read_result(cell: Path) -> dict[str, Any]:
    """What a cell's ``result.json`` holds; empty where it is missing or cannot be read."""
    try:
        return read_signed_json(cell / "result.json")
    except (OSError, ValueError):
        return {}


def status_of(folder: Path) -> tuple[str, str | None]:
    """Status and error of a cell's ``result.json``: "absent" without one, "damaged" unreadable."""
    try:
        values = read_signed_json(folder / "result.json")
        return str(values["status"]), values["error"]
    except FileNotFoundError:
        return "absent", None
    except (OSError, ValueError, KeyError):
        return "damaged", "result.json cannot be read"


def run_cell(
    run: config.Run,
    planned: Planned,
    sweep: Path,
    *,
    share: Callable[[], AbstractContextManager[dict[str, str]]],
    hopeless: Callable[[], bool] = lambda: False,
    minutes: float | None,
    prune: Callable[[Path], str | None] | None = None,
) -> tuple[str, str | None]:
    """Bring a cell to its end in a process of its own, or find that it is there; return its status.

    The result is copied from a finished cell of another sweep, or its adapter taken from one of
    this sweep that differs in decoding and evaluation alone, where there is one. share: waits for
    the cell's share of the machine, and gives variables for its process. hopeless: asked before
    that begins; True leaves the cell as it is. prune: asked whenever the cell has measured its loss
    while it trains; what it returns is why it ends there. ValueError when the folder holds
    something else.
    """
    folder = sweep / planned.folder
    if run.tracking.mirror is not None:
        below = f"{run.tracking.mirror.rstrip('/')}/{sweep.resolve().name}"
        run = replace(run, tracking=replace(run.tracking, mirror=below))
    check_own(folder, planned)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        held.enter_context(locked(_lock(sweep, planned.folder), None))
        if is_settled(folder, prune):
            return status_of(folder)
        about: dict[str, Any] = {**asdict(planned), "trained_by": None, "reused_from": None}
        if (found := finished_twin(folder, planned)) is not None:
            twin, theirs = found
            about |= {"trained_by": theirs["trained_by"], "reused_from": str(twin)}
            write_signed_json(folder / CELL_FILE, about)
            _copy_result(twin, folder)
            if (mirror := remote.mirror_of(folder, run.tracking.mirror)) is not None:
                mirror.try_update()
            return status_of(folder)
        # Cells of one adapter: the first trains it while the others wait, then all take it over.
        with ExitStack() as turn:
            if (trained := _finished_training(folder, planned)) is None:
                turn.enter_context(locked(_lock(sweep, planned.training), None))
                if (trained := _finished_training(folder, planned)) is not None:
                    turn.close()
            environment = held.enter_context(share())
            if hopeless():
                return status_of(folder)
            _clear(folder)
            about["trained_by"] = trained.name if trained else None
            write_signed_json(folder / CELL_FILE, about)
            ended = run_isolated(
                _run,
                run,
                folder,
                trained,
                prune,
                log=folder / LOG_FILE,
                environment=environment,
                seconds=None if minutes is None else 60 * minutes,
            )
            _record_end(folder, ended, minutes)
    if status_of(folder)[0] == "finished":
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    # The run has seen to the rest; its log and how its process ended were not its own to write.
    if (mirror := remote.mirror_of(folder, run.tracking.mirror, "*")) is not None:
        mirror.try_update()
    return status_of(folder)


def wait_for_cells(sweep: Path) -> None:
    """Let cells of this machine that were told to end write their checkpoints.

    For GRACE_SECONDS at most, which is what they have themselves. A line on stderr says that it
    waits.
    """
    told = False
    last = time.monotonic() + GRACE_SECONDS
    for file in sorted(sweep.glob(f"*/{CELL_FILE}")):
        while time.monotonic() < last:
            try:
                with locked(file.parent, "busy"):
                    break
            except ValueError:
                if not told:
                    print("waiting for cells to write their checkpoints", file=sys.stderr)
                told = True
                time.sleep(0.2)


def _lock(sweep: Path, name: str) -> Path:
    """A file of the sweep to be locked under a name, by any of the machines that share it."""
    place = sweep / ".locks" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def is_settled(folder: Path, prune: Callable[[Path], str | None] | None = None) -> bool:
    """Whether a cell's folder holds a result that another attempt would only repeat.

    prune: as of ``run_cell``; a cell that it ended, and would end again, is settled.
    """
    if not (folder / CELL_FILE).is_file():
        return False
    status, _ = status_of(folder)
    if status == "pruned":
        return prune is not None and prune(folder) is not None
    return status == "diverged" or (status == "finished" and is_whole(folder))


def is_whole(folder: Path) -> bool:
    """Whether a finished cell has its adapter, and its record is as it was written."""
    try:
        record.check(folder)
        metrics = read_result(folder)["metrics"].get("after", [])
        counts = {each["name"]: each["n"] for each in metrics}
        wanted = counts.get("loss/all", 0)
        rows = read_json_lines(folder / "losses.jsonl") if wanted else []
        found = sum(row["phase"] == "after" for row in rows)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return found == wanted and (folder / "adapter").is_dir()


def _clear(folder: Path) -> None:
    """Take away what is damaged, or speaks of what is gone: the cell is then made anew."""
    try:
        record.check(folder)
        whole = status_of(folder)[0] not in {"damaged", "finished"}
    except (OSError, ValueError):
        whole = False
    if not whole:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _run(
    run: config.Run,
    folder: Path,
    trained: Path | None,
    prune: Callable[[Path], str | None] | None,
) -> None:
    """What happens in the cell's own process."""
    import torch

    from dollyllama.run import run as run_to_the_end
    from dollyllama.training.fit import Pruned

    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    # What cells take is told from those that are done.
    with suppress(Pruned):
        run_to_the_end(run, folder, trained=trained, expect_memory=False, prune=prune)


def check_own(folder: Path, planned: Planned) -> None:
    """ValueError when a folder of a cell's name holds another cell, or something else."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    try:
        there = read_signed_json(folder / CELL_FILE)["fingerprint"]
    except FileNotFoundError:
        if not (folder / "config.yaml").exists():
            return  # copied half-way, or killed at its very start
        there = None
    except (OSError, ValueError, KeyError):
        raise ValueError(
            f"{folder / CELL_FILE} is damaged: remove {folder.name}, and it is run again"
        ) from None
    if there != planned.fingerprint:
        raise ValueError(
            f"{folder} holds another config's result (fingerprint {there}, not "
            f"{planned.fingerprint}): move it away"
        )


def finished_cells(place: Path, pattern: str = "*") -> Iterator[tuple[Path, dict[str, Any]]]:
    """The finished cells of a sweep folder with their ``cell.json``, by name."""
    for file in sorted(place.glob(f"{pattern}/{CELL_FILE}")):
        with suppress(OSError, ValueError):
            about = read_signed_json(file)
            if status_of(file.parent)[0] == "finished":
                yield file.parent, about


def finished_twin(folder: Path, planned: Planned) -> tuple[Path, dict[str, Any]] | None:
    """A finished cell of a sweep beside this one that has the same fingerprint."""
    for sweep in sorted(folder.parent.parent.glob("*/")):
        if sweep.resolve() == folder.parent.resolve():
            continue
        for cell, about in finished_cells(sweep, f"*.{planned.fingerprint[:8]}"):
            if about.get("fingerprint") == planned.fingerprint and is_whole(cell):
                return cell, about
    return None


def _finished_training(folder: Path, planned: Planned) -> Path | None:
    """A finished cell of this sweep that trained, by itself, the adapter that this one needs."""
    for cell, about in finished_cells(folder.parent):
        own = about.get("training") == planned.training and about.get("trained_by") is None
        if own and cell != folder and is_whole(cell):
            return cell
    return None


def _copy_result(twin: Path, folder: Path) -> None:
    """Copy a finished cell, ``result.json`` last; its adapter by links where the disk has them."""
    shutil.copytree(
        twin,
        folder,
        copy_function=_copy,
        dirs_exist_ok=True,
        ignore=lambda place, names: {*_NOT_COPIED(place, names), "result.json"} & set(names),
    )
    shutil.copy2(twin / "result.json", folder / "result.json")


def _copy(source: str, target: str) -> None:
    Path(target).unlink(missing_ok=True)
    if source.endswith(".safetensors"):  # large, and never written to
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)


def _record_end(folder: Path, ended: Ended, minutes: float | None) -> None:
    """Keep ``result.json`` true where the cell's own process could not write its end."""
    status, _ = status_of(folder)
    told = status not in {"running", "absent", "damaged"}
    if status == "finished" or ended.end is End.done or (ended.end is End.raised and told):
        return
    reason = {
        End.too_long: f"stopped after sweep.cell_minutes={minutes}",
        End.killed: f"killed by signal {ended.signal}"
        + (", as when memory runs out" if ended.signal == 9 else ""),
        End.raised: _last_line(folder / LOG_FILE),
    }[ended.end]
    # As a run begins it, which must be able to go on from it (run.Result is slow to import).
    values: dict[str, Any] = {name: {} for name in ("metrics", "parameters", "seconds", "files")}
    values |= {"train": None, "expected_memory_mib": None}
    values |= read_result(folder) | {"status": "failed", "error": str(redact(reason))}
    write_signed_json(folder / "result.json", values)


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        lines = []
    return one_line(
        next((line for line in reversed(lines) if line.strip()), "ended without a word")
    )
