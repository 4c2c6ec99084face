"""The Hydra side of a sweep: from its axes to planned cells, each job to its cell, and the end.

Hydra's sweeper and launcher stay in charge of which jobs there are and where they run (one after
the other, joblib, Ray, submitit). The callback plans the study before the first job; every job
finds its cell in the plan; a watcher in the launching process tells what happens and keeps the
report up to date, both from the folders alone.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from dollyllama import config
from dollyllama.device import cuda_device_count
from dollyllama.files import locked
from dollyllama.study.cells import (
    Planned,
    check_own,
    is_settled,
    plan_cell,
    run_cell,
    slug,
    status_of,
)
from dollyllama.study.plan import (
    PLAN_FILE,
    Job,
    StudyPlan,
    plan_study,
    plan_text,
    read_plan,
    write_plan,
)

#: Where sweeps go unless ``hydra.sweep.dir`` says otherwise.
SWEEPS = Path("runs/sweeps")
#: Keys of conf/sweep.yaml that are the study's, not a run's.
_STUDY_KEYS = ("seeds",)
#: What a sweep's folder is not named by: more seeds or other tracking go on with the same study.
_UNNAMED = re.compile(r"(hydra|tracking)\b|sweep\.|seeds?$")


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def cells_at_once() -> int:
    """As many as there are GPUs, or else cores: small models gain little from a second thread."""
    return cuda_device_count() or usable_cores()


#: Generators of two-level designs of resolution V or more by their number of factors (Box, Hunter
#: & Hunter 2005, Statistics for Experimenters, table 6.22); with fewer factors all combinations.
_GENERATORS = {5: "a b c d abcd", 6: "a b c d e abcde", 7: "a b c d e f abcdef",
               8: "a b c d e f abcd abef"}  # fmt: skip


def fractional_factorial(factors: Sequence[str]) -> str:
    """A two-level design for these ablations, as an axis of lists of them, the baseline first.

    In it main effects and interactions of two factors stand apart from each other. ValueError for
    one factor, or more than eight.
    """
    from pyDOE3 import fracfact, fullfact

    names = list(factors)
    if not 2 <= len(names) <= max(_GENERATORS):
        raise ValueError(f"sweep.factors: a design is for 2 to {max(_GENERATORS)} of them")
    generators = _GENERATORS.get(len(names))
    design = fracfact(generators) if generators else 2 * fullfact([2] * len(names)) - 1
    chosen = [[name for name, sign in zip(names, row, strict=True) if sign > 0] for row in design]
    if [] not in chosen:  # the mirrored design holds the baseline, and is as good
        chosen = [[name for name in names if name not in row] for row in chosen]
    chosen.sort(key=lambda row: (len(row), row))
    return ",".join(f"[{','.join(row or ['baseline'])}]" for row in chosen)


OmegaConf.register_new_resolver("cells_at_once", cells_at_once, replace=True)
OmegaConf.register_new_resolver("fractional_factorial", fractional_factorial, replace=True)


def default_folder(arguments: Sequence[str], choice: str) -> Path:
    """The folder of a sweep by its command line, so that the same command finds it again."""
    overrides = [each for each in arguments if "=" in each and not each.startswith("-")]
    named = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "sweep":
            choice = value
        elif not _UNNAMED.match(key):
            named.append(override)
    return SWEEPS / "-".join([slug(choice), *([slug(",".join(named))] if named else [])])


class Session:
    """A sweep from its plan to its exit status; one a process."""

    def __init__(self) -> None:
        self.dry_run = False
        self.plan: StudyPlan | None = None
        self.folder: Path | None = None
        self._watch: Any = None

    def start(self, plan: StudyPlan, folder: Path) -> None:
        from dollyllama.study.watch import Watch

        self.plan, self.folder = plan, folder
        write_plan(plan, folder, [Path(sys.argv[0]).name, *sys.argv[1:]])
        self._watch = Watch(folder, plan.cells, steps=plan.steps, report=self._report)
        self._watch.start()

    def _report(self) -> None:
        from dollyllama.study.report import write_report

        assert self.folder is not None
        write_report(self.folder, [self.folder])

    def _tell(self) -> None:
        """Print what was found, and log it."""
        from dollyllama.study.report import terminal_table, write_report
        from dollyllama.study.summary_run import log_study

        assert self.plan is not None
        assert self.folder is not None
        study = write_report(self.folder, [self.folder])
        print(f"\n{terminal_table(study)}\n\n{_shown(self.folder) / 'report.html'}")
        tracking = self.plan.tracking
        log_study(
            study,
            self.folder,
            mode=tracking.wandb,
            project=tracking.project,
            entity=tracking.entity,
            group=tracking.group,
            tags=tracking.tags,
            artifacts=tracking.artifacts,
        )

    def finish(self) -> int:
        """Tell how the sweep ended; the exit status: 2 with refused jobs, 1 with failed ones."""
        if self.plan is None or self.folder is None or self._watch is None:
            return 0
        self._watch.stop()
        self._tell()
        statuses = [status_of(self.folder / cell.folder)[0] for cell in self.plan.cells]
        if self.plan.refused:
            return 2
        return int(any(status != "finished" for status in statuses))


SESSION = Session()


class StudyCallback(Callback):
    """Hydra's callback (conf/train.yaml) that plans a sweep before its first job."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        # Hydra turns an Exception of a callback into a warning, and lets SystemExit pass.
        from dollyllama import launch

        with launch.reported_to_user():
            self._plan(config)

    def _plan(self, master: DictConfig) -> None:
        folder = Path(master.hydra.sweep.dir).absolute()
        jobs = list(_jobs(master))
        if not jobs:  # the sweeper decides as it goes
            return
        plan = plan_study(jobs)
        for cell in plan.cells:
            check_own(folder / cell.folder, cell)
        at_once = _at_once(master)
        if SESSION.dry_run:
            print(plan_text(plan, _shown(folder), at_once=at_once))
            raise SystemExit(0)
        for variant, reason in plan.left_out.items():
            print(f"left out: {variant}: {reason}", file=sys.stderr)
        for overrides, reason in plan.refused:
            print(f"error: {' '.join(overrides)}: {reason}", file=sys.stderr)
        SESSION.start(plan, folder)


def run_job(composed: DictConfig, hydra_config: Any) -> float | None:
    """Run the cell that a job of a sweep is; its primary metric, for sweepers that optimise.

    Failures are recorded in the cell's folder, and the other jobs go on.
    """
    folder = Path(hydra_config.sweep.dir).absolute()
    overrides = list(hydra_config.overrides.task)
    try:
        run = build(composed)
        planned = plan_cell(run, overrides)
    except ValueError as error:
        if not (folder / PLAN_FILE).exists():  # the plan has said so already
            print(f"error: {' '.join(overrides)}: {error}", file=sys.stderr)
        return None
    if (folder / PLAN_FILE).exists():
        known = {cell.fingerprint: cell for cell in read_plan(folder)}
        found = known.get(planned.fingerprint)
        if found is None or _hopeless(folder, list(known.values()), run.sweep.fail_fast):
            return None  # left out, and told so before the first job
        planned = found
    at_once = _at_once_of(hydra_config)
    with _slot(folder, at_once) as environment:
        run_cell(run, planned, folder, environment=environment, minutes=run.sweep.cell_minutes)
    return _primary(folder / planned.folder, run.evaluation.primary)


def build(composed: DictConfig) -> config.Run:
    """A checked config of a job: ``config.build`` without the keys that are the study's."""
    values = OmegaConf.to_container(composed)
    assert isinstance(values, dict)
    return config.build(OmegaConf.create({k: v for k, v in values.items() if k not in _STUDY_KEYS}))


def _jobs(master: DictConfig) -> Iterator[tuple[Job, Planned | None]]:
    """Every job that Hydra's own sweeper will make, composed and checked; none for other sweepers.

    Seeds share one composition.
    """
    from dollyllama import launch, preflight

    sweeper = master.hydra.sweeper
    if not str(sweeper._target_).endswith(".BasicSweeper"):
        return
    lines = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    parser = OverridesParser.create()
    parsed = parser.parse_overrides([*lines, *master.hydra.overrides.task])
    swept = {each.get_key_element() for each in parsed if each.is_sweep_override()} | {"ablation"}
    composed: dict[tuple[str, ...], tuple[config.Run | None, str | None]] = {}
    for batch in BasicSweeper.split_arguments(parsed, None):
        for overrides in batch:
            axes = [each for each in overrides if each.partition("=")[0] in swept]
            key = tuple(each for each in overrides if not each.startswith("seed="))
            if key not in composed:
                values = compose(master.hydra.job.config_name, list(overrides))
                try:
                    run = build(values)
                    preflight.check(run)
                    preflight.check_sandbox(run)
                    composed[key] = run, None
                except ValueError as error:
                    composed[key] = None, launch.describe(error)
            run_or_none, refused = composed[key]
            if run_or_none is None:
                yield Job(axes, None, refused), None
                continue
            seed = next((o.partition("=")[2] for o in overrides if o.startswith("seed=")), None)
            run = run_or_none if seed is None else _with_seed(run_or_none, seed)
            yield Job(axes, run), plan_cell(run, axes)


def _with_seed(run: config.Run, seed: str) -> config.Run:
    values = OmegaConf.structured(run)
    values.seed = int(seed)
    return config.build(values)


def _hopeless(folder: Path, cells: Sequence[Planned], fail_fast: int | None) -> bool:
    """Whether so many first cells have failed in this session, all of the same error."""
    if fail_fast is None or len(cells) <= fail_fast:
        return False
    began = (folder / PLAN_FILE).stat().st_mtime
    ends = []
    for cell in cells:
        with suppress(FileNotFoundError):
            result = folder / cell.folder / "result.json"
            if result.stat().st_mtime >= began or is_settled(result.parent):
                ends.append(status_of(result.parent))
    failed = [error for status, error in ends if status == "failed"]
    done = any(status == "finished" for status, _ in ends)
    return not done and len(failed) >= fail_fast and len(set(failed)) == 1


def _at_once(master: DictConfig) -> int:
    return _at_once_of(master.hydra)


def _at_once_of(hydra_config: Any) -> int:
    """How many cells the launcher runs side by side on this machine."""
    jobs = OmegaConf.select(hydra_config, "launcher.n_jobs") or 1
    return usable_cores() if jobs < 0 else int(jobs)


@contextmanager
def _slot(folder: Path, at_once: int) -> Iterator[dict[str, str]]:
    """A share of the machine for one cell: threads, and the GPU with the fewest cells."""
    if at_once == 1:
        yield {}
        return
    shares = {"OMP_NUM_THREADS": str(max(1, usable_cores() // at_once))}
    count = cuda_device_count()
    if count == 0:
        yield shares
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = visible if visible != [""] else [str(number) for number in range(count)]
    for number in range(at_once):
        place = folder / ".slots" / str(number)
        place.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            try:
                held.enter_context(locked(place, "taken"))
            except ValueError:
                continue
            yield {**shares, "CUDA_VISIBLE_DEVICES": names[number % count]}
            return
    yield shares


def _primary(cell: Path, name: str | None) -> float | None:
    """The value of a cell's primary metric; None when it has none."""
    try:
        metrics = json.loads((cell / "result.json").read_text(encoding="utf-8"))["metrics"]
        return next(float(each["value"]) for each in metrics["after"] if each["name"] == name)
    except (OSError, ValueError, KeyError, StopIteration):
        return None


def _shown(folder: Path) -> Path:
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
