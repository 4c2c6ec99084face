"""What a run logs: JSON lines always, Weights & Biases beside it when it can be had.

``metrics.jsonl`` is the record. W&B gets the same numbers under the same names; whatever happens
to it (no account, no network, a full disk, a killed helper process) costs a line on the terminal,
never the run. So this is the one module that catches every Exception, around calls of W&B and
nothing else: a bad answer of its server came out as a pydantic error, a killed helper as one of
asyncio's.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import logging
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dollyllama import provenance
from dollyllama.files import read_signed_json, write_json_lines
from dollyllama.redact import redact

# W&B's own error reports and usage statistics; set before anything imports W&B.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

METRICS_FILE = "metrics.jsonl"
#: In the folder of a study's cell: which variant it is, with which seed.
CELL_FILE = "cell.json"
#: What W&B's summary calls the cost of a run: by name the part and the key of ``result.json``.
COSTS = {
    "cost/training_seconds": ("train", "seconds"),
    "cost/tokens_per_second": ("train", "tokens_per_second"),
    "cost/peak_memory_mib": ("train", "peak_memory_mib"),
    "cost/evaluation_seconds": ("seconds", "evaluate_after"),
    "cost/trainable_parameters": ("parameters", "trainable"),
}
#: The exit code of a run that was stopped and can go on, as shells tell of Ctrl-C.
INTERRUPTED = 130
#: W&B refuses longer tags and names.
_TAG_CHARACTERS = 64
_NAME_CHARACTERS = 128
#: Seconds that W&B's server gets to answer at the start, and to take the rest at the end.
INIT_TIMEOUT_SECONDS = 15.0
FINISH_TIMEOUT_SECONDS = 60.0


def open_tracker(
    folder: Path,
    *,
    mode: str,
    project: str | None,
    entity: str | None,
    group: str | None,
    tags: Sequence[str] | None,
    job_type: str,
    name: str,
    run_id: str,
    config: dict[str, Any],
) -> Tracker:
    """Open the log of the run in ``folder``: go on with ``metrics.jsonl``, start W&B.

    mode: auto (online when logged in, else offline), online, offline or disabled; ``WANDB_MODE``
    set to offline or disabled wins. config: the whole resolved config, given to W&B at its start
    because an offline run has no other time for it. run_id: equal for a run and its resumption.
    A cell of a study (``folder`` holds ``cell.json``) is grouped by its sweep unless ``group``
    names another group, named and tagged by variant and seed in place of ``name``.
    ValueError when mode is online and nobody is logged in, or ``cell.json`` is damaged.
    """
    cell = read_cell(folder)
    if cell is not None:
        group = group or study_group(folder.resolve().parent)
        name = f"{cell['variant']} seed {cell['seed']}"
        tags = [*(tags or ()), cell["variant"], f"seed {cell['seed']}", cell["fingerprint"]]
        # Nested like the sections: W&B's tables and searches call it study.variant.
        config = {**config, "study": {key: cell[key] for key in ("variant", "fingerprint")}}
    wandb_run = open_wandb(
        folder,
        mode=mode,
        project=project,
        entity=entity,
        group=group,
        tags=tags,
        job_type=job_type,
        name=name,
        run_id=run_id,
        config={
            **config,
            "code": provenance.describe_code(),
            "packages": provenance.package_versions(),
        },
        record=METRICS_FILE,
    )
    return Tracker(folder / METRICS_FILE, wandb_run)


def open_wandb(
    folder: Path,
    *,
    mode: str,
    project: str | None,
    entity: str | None,
    group: str | None,
    tags: Sequence[str] | None,
    job_type: str,
    name: str,
    run_id: str,
    config: dict[str, Any],
    record: str,
    replace: bool = False,
) -> WandbRun:
    """Start a W&B run whose files lie in ``folder``; one that does nothing when it cannot be had.

    record: the file that has everything anyhow, for the line that says so. replace: what an earlier
    session of the run left on this disk for ``wandb sync`` is removed, not gone on with.
    ValueError when mode is online and nobody is logged in.
    """
    mode = resolve_mode(mode)
    if mode == "disabled":
        return WandbRun(None, record)
    settings = {
        "project": project,
        "entity": entity,
        "group": _label(group, _NAME_CHARACTERS) if group else None,
        "tags": list(dict.fromkeys(_label(tag, _TAG_CHARACTERS) for tag in tags or ())),
        "job_type": job_type,
        "name": _label(name, _NAME_CHARACTERS),
        "id": run_id,
        "resume": "allow",
        "dir": str(folder),
        "config": redact(config),
    }
    folder.mkdir(parents=True, exist_ok=True)
    if replace:
        for earlier in (folder / "wandb").glob(f"offline-run-*-{run_id}*"):
            shutil.rmtree(earlier, ignore_errors=True)
    return WandbRun(_start_wandb(mode, folder, settings, record), record)


def read_cell(folder: Path) -> dict[str, Any] | None:
    """What ``cell.json`` says of a study's cell; None where a run stands for itself.

    ValueError when the file is damaged.
    """
    path = folder / CELL_FILE
    if not path.exists():
        return None
    try:
        cell = read_signed_json(path)
        _ = cell["variant"], cell["seed"], cell["fingerprint"]
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove {folder} to run it anew") from None
    return cell


def study_group(folder: Path) -> str:
    """The W&B group of the cells of the sweep in ``folder``."""
    return folder.resolve().name


def costs(result: dict[str, Any]) -> dict[str, float]:
    """What a run took, from the contents of its ``result.json``, under the names of ``COSTS``."""
    return {
        name: result[part][key]
        for name, (part, key) in COSTS.items()
        if key in (result.get(part) or {})
    }


class WandbRun:
    """A W&B run or, where there is none, nothing: what fails costs a line and ends it."""

    def __init__(self, run: Any | None, record: str) -> None:
        self._run = run
        self._record = record

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        """Add numbers to the run's history. step: None for the next one."""
        self._do(lambda run: run.log(values, step=step))

    def table(self, name: str, rows: Sequence[dict[str, Any]], step: int | None = None) -> None:
        """Show ``rows``, which have equal keys, as a table."""
        if not rows:
            return
        columns = list(rows[0])
        data = [[_cell(row[column]) for column in columns] for row in rows]

        def show(run: Any) -> None:
            import wandb

            run.log({name: wandb.Table(columns=columns, data=data)}, step=step)

        self._do(show)

    def page(self, name: str, path: Path) -> None:
        """Show an HTML file as it is."""

        def show(run: Any) -> None:
            import wandb

            run.log({name: wandb.Html(path.read_text(encoding="utf-8"), inject=False)})

        self._do(show)

    def image(self, name: str, path: Path) -> None:
        """Show a picture."""

        def show(run: Any) -> None:
            import wandb

            run.log({name: wandb.Image(str(path))})

        self._do(show)

    def summary(self, values: dict[str, Any]) -> None:
        """Set the run's summary: the numbers by which W&B's tables compare runs."""
        self._do(lambda run: run.summary.update(redact(values)))

    def artifact(self, name: str, kind: str, files: Sequence[Path], *, copy: bool) -> None:
        """Keep ``files`` as a version of the artefact ``name``, of type ``kind``.

        copy: into W&B's folder in the user's home until they are sent, for files that change;
        else an offline run sends them from where they are.
        """

        def keep(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(_artifact_name(name), type=kind)
            for file in files:
                artifact.add_file(
                    str(file), name=file.name, policy="mutable" if copy else "immutable"
                )
            run.log_artifact(artifact)

        self._do(keep)

    def finish(self, failed: bool, *, interrupted: bool = False) -> None:
        """End the run, shown as failed or finished; interrupted: as one that can go on.

        When it returns, W&B's files are whole: its own ``finish`` only asks for that.
        A second call does nothing.
        """
        if self._run is None:
            return
        # In a sweep of W&B's own it would start such a run again, also one that it stopped itself.
        if interrupted and not self._run.sweep_id:
            self._do(lambda run: run.mark_preempting())
        self._do(lambda run: run.finish(exit_code=INTERRUPTED if interrupted else int(failed)))
        if self._run is not None:
            self._run = None
            _teardown()

    def _do(self, action: Callable[[Any], object]) -> None:
        """Do something to the run, if there is one; go on without it when that fails."""
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # see the module's docstring
            self._run = None
            _teardown()
            _say(f"W&B stopped answering ({_one_line(error)}); {self._record} goes on without it")


class Tracker:
    """The open log of one run; a context manager that marks the run failed when it raises."""

    def __init__(self, path: Path, wandb_run: WandbRun) -> None:
        self._path = path
        self._wandb = wandb_run
        self._lines = _read_whole_lines(path)
        self._earlier = len(self._lines)  # how many of them an earlier session wrote
        write_json_lines(path, self._lines)
        self._file = path.open("a", encoding="utf-8", newline="\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.finish(kind is not None, interrupted=isinstance(error, KeyboardInterrupt))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write one line: ``values`` after ``step`` optimizer steps.

        What an earlier session logged after this step, or at it under one of the same names, is
        dropped: the run was resumed from before, and repeats it. A number that is not finite
        becomes null, and ``not_finite`` says which one it was. OSError when the file cannot be
        written, or is gone.
        """
        if not os.fstat(self._file.fileno()).st_nlink:  # else all would go on, into nothing
            raise FileNotFoundError(
                errno.ENOENT, "removed while its run was going on", str(self._path)
            )
        line: dict[str, Any] = {
            "step": step,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        }
        for name, value in values.items():
            line[name] = float(value) if math.isfinite(value) else None
        if odd := {name: str(float(v)) for name, v in values.items() if not math.isfinite(v)}:
            line["not_finite"] = odd
        self._drop_repeated(line)
        self._lines.append(line)
        self._file.write(json.dumps(line, sort_keys=True, allow_nan=False) + "\n")
        self._file.flush()
        self._wandb.log(dict(values), step)

    def table(self, step: int, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Show ``rows`` as a table in W&B. Their home on disk is the run folder's own file."""
        self._wandb.table(name, rows, step)

    def summary(self, values: dict[str, Any]) -> None:
        """Set W&B's summary: the numbers by which its tables compare runs."""
        self._wandb.summary(values)

    def artifact(self, name: str, kind: str, folder: Path) -> None:
        """Keep the files of ``folder`` as an artefact of W&B's run."""
        files = [file for file in sorted(folder.iterdir()) if file.is_file()]
        self._wandb.artifact(name, kind, files, copy=False)

    def finish(self, failed: bool, *, interrupted: bool = False) -> None:
        """Close the log; W&B shows the run as failed, finished or, if interrupted, preempted.

        A second call does nothing.
        """
        self._file.close()
        self._wandb.finish(failed, interrupted=interrupted)

    def _drop_repeated(self, line: dict[str, Any]) -> None:
        kept = self._earlier
        while kept and self._lines[kept - 1]["step"] > line["step"]:
            kept -= 1
        start = kept
        while start and self._lines[start - 1]["step"] == line["step"]:
            start -= 1
        names = line.keys() - {"step", "time", "not_finite"}
        at_step = [old for old in self._lines[start:kept] if not names & old.keys()]
        if start + len(at_step) == self._earlier:
            return
        self._lines = self._lines[:start] + at_step + self._lines[self._earlier :]
        self._earlier = start + len(at_step)
        self._file.close()
        write_json_lines(self._path, self._lines)
        self._file = self._path.open("a", encoding="utf-8", newline="\n")


def resolve_mode(mode: str) -> str:
    """Return online, offline or disabled for the config's ``tracking.wandb`` and the environment.

    ``WANDB_MODE`` (or ``WANDB_DISABLED``) can take W&B off the net or away, never the other way.
    ValueError when mode is online and nobody is logged in.
    """
    wish = os.environ.get("WANDB_MODE", "").lower()
    off = os.environ.get("WANDB_DISABLED", "").lower() in {"true", "1", "yes"}
    if mode == "disabled" or wish == "disabled" or off:
        return "disabled"
    if mode == "offline" or wish in {"offline", "dryrun"}:
        return "offline"
    if is_logged_in():
        return "online"
    if mode == "online":
        raise ValueError(
            "tracking.wandb=online, but nobody is logged in to W&B here: run `wandb login`, "
            "or take tracking.wandb=auto, which keeps an offline run to sync later"
        )
    return "offline"


def is_logged_in() -> bool:
    """Whether W&B has credentials in environment, netrc or settings; asks no network, no user."""
    _import_wandb()
    import wandb
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib.wbauth import authenticate_session

    try:
        found = authenticate_session(
            host=wandb.setup().settings.base_url,
            source="dollyllama",
            prompt=False,
            update_session=False,
        )
    except AuthenticationError as error:
        _say(f"W&B stays offline: {_one_line(error)}")
        return False
    return found is not None


def _import_wandb() -> None:
    """Import W&B, silent."""
    import wandb

    wandb.setup(wandb.Settings(silent=True))


def _start_wandb(mode: str, folder: Path, settings: dict[str, Any], record: str) -> Any | None:
    """Start a W&B run: offline when online fails, none at all when that fails too."""
    _import_wandb()
    before = _wandb_folders(folder)
    try:
        run = _init_wandb(mode, settings)
    except Exception as error:  # see the module's docstring
        reason = _one_line(error)
    else:
        # On a full disk its log of itself would print a traceback a message.
        for handler in logging.getLogger("wandb").handlers:
            handler.handleError = lambda record: None  # type: ignore[method-assign]
        return run
    # The id is taken as long as the helper process of the failed attempt lives.
    _teardown()
    for left_over in _wandb_folders(folder) - before:
        shutil.rmtree(left_over, ignore_errors=True)
    if mode == "online":
        _say(f"W&B cannot be reached ({reason}); this run is tracked offline, to be synced later")
        return _start_wandb("offline", folder, settings, record)
    _say(f"W&B does not start ({reason}); this run is tracked in {record} alone")
    return None


def _init_wandb(mode: str, settings: dict[str, Any]) -> Any:
    import wandb

    return wandb.init(
        **settings,
        settings=wandb.Settings(
            mode=mode,
            silent=True,
            console="off",
            init_timeout=INIT_TIMEOUT_SECONDS,
            login_timeout=INIT_TIMEOUT_SECONDS,
            finish_timeout=FINISH_TIMEOUT_SECONDS,
            # W&B's metadata holds the argument list, host, user and git remote, each a place
            # for a secret; provenance.py says what is of use of it.
            host="",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            save_code=False,
            symlink=False,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        ),
    )


def _wandb_folders(folder: Path) -> set[Path]:
    return set((folder / "wandb").glob("*run-*"))


def _teardown() -> None:
    """End W&B's helper process, so that the next run of this process starts a fresh one."""
    import wandb

    # It may be gone already; and of one that crashed, W&B passes the exit status to sys.exit.
    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()


def _read_whole_lines(path: Path) -> list[dict[str, Any]]:
    """Read the lines of an earlier session; one that a crash cut off at the end is left out."""
    if not path.exists():
        return []
    lines = []
    # Bytes that are no UTF-8 are no JSON either, in whatever line they are.
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            values = json.loads(line.encode())
            _ = values["step"] + 0
            lines.append(values)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(
                f"{path} is damaged in line {number}: remove the line to go on with this run"
            ) from None
    return lines


def _cell(value: Any) -> Any:
    """A value as W&B's tables take it: lists and dicts as JSON."""
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    return value


def _label(text: str, characters: int) -> str:
    """A text without secrets, cut where W&B would refuse it for its length."""
    text = redact(text)
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


def _artifact_name(name: str) -> str:
    """A name of the characters that W&B allows for an artefact."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:_NAME_CHARACTERS]


def _one_line(error: Exception) -> str:
    return str(redact(" ".join(str(error).split())))[:200] or type(error).__name__


def _say(message: str) -> None:
    print(message, file=sys.stderr)
