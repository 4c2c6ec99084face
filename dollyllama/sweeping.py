"""The Hydra side of a sweep: from its axes to planned cells, each job to its cell, and the end.

Hydra's sweeper and launcher stay in charge of which jobs there are and where they run (one after
the other, joblib, Ray, submitit). The callback plans the study before the first job; every job
finds its cell in the plan; a watcher in the launching process tells what happens and keeps the
report up to date, both from the folders alone.
"""

from __future__ import annotations

import math
import multiprocessing
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.experimental.callback import Callback
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from dollyllama import config, remote
from dollyllama.device import usable_cores
from dollyllama.files import locked
from dollyllama.interrupt import Terminated, end_on_sigterm
from dollyllama.orphans import die_with_parent
from dollyllama.redact import mask_output
from dollyllama.study.cells import (
    Planned,
    check_own,
    finished_cells,
    is_settled,
    plan_cell,
    read_result,
    run_cell,
    slug,
    status_of,
    wait_for_cells,
)
from dollyllama.study.design import fractional_factorial
from dollyllama.study.lost import prepare
from dollyllama.study.plan import (
    PLAN_FILE,
    Job,
    StudyPlan,
    plan_study,
    plan_text,
    read_plan,
    search_text,
    write_plan,
)
from dollyllama.study.prune import MedianRule, losses_on_the_way, note_proposal
from dollyllama.study.slots import cells_at_once, slot

#: Where sweeps go unless ``hydra.sweep.dir`` says otherwise.
SWEEPS = Path("runs/sweeps")
#: Keys of conf/sweep.yaml that are the study's, not a run's.
_STUDY_KEYS = ("seeds",)
#: What a sweep's folder is not named by: more seeds or other tracking go on with the same study.
_UNNAMED = re.compile(r"(hydra|tracking)\b|sweep\.|seeds?$")


OmegaConf.register_new_resolver("cells_at_once", cells_at_once, replace=True)
OmegaConf.register_new_resolver("fractional_factorial", fractional_factorial, replace=True)


def default_folder(arguments: Sequence[str], choice: str) -> Path:
    """The folder of a sweep by its command line, so that the same command finds it again."""
    overrides = [each for each in arguments if "=" in each and not each.startswith("-")]
    named = []
    for override in sorted(overrides):
        key, _, value = override.lstrip("+~").partition("=")
        if key == "sweep":
            choice = value
        elif not _UNNAMED.match(key):
            named.append(override)
    return SWEEPS / "-".join([slug(choice), *([slug(",".join(named))] if named else [])])


class Session:
    """A sweep from its plan to its exit status; one a process."""

    def __init__(self) -> None:
        self.dry_run = False
        self.interrupted = False
        self.plan: StudyPlan | None = None
        self.search: Search | None = None
        self.folder: Path | None = None
        self._watch: Any = None
        self._mirror: remote.Mirror | None = None
        self._held = ExitStack()

    def start(self, plan: StudyPlan, folder: Path) -> None:
        """Take the folder for this sweep, write its plan and watch its cells.

        ValueError when another sweep runs there.
        """
        from dollyllama.study.watch import Watch

        folder.mkdir(parents=True, exist_ok=True)
        busy = (
            f"another sweep runs in {_shown(folder)}: wait for it, or give hydra.sweep.dir=FOLDER"
        )
        self._held.enter_context(locked(folder / ".sweep", busy))
        self.plan, self.folder = plan, folder
        name = Path(sys.argv[0]).name
        words = [each for each in sys.argv[1:] if each != "--multirun" or name != "sweep.py"]
        write_plan(plan, folder, [name, *words])
        # Cells see to themselves.
        self._mirror = remote.mirror_of(folder, plan.tracking.mirror, "*")
        if self._mirror is not None:
            self._mirror.update()
        self._watch = Watch(
            folder, plan.cells, steps=plan.steps, primary=plan.primary, report=self._report
        )
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
        if self.search is not None:
            return self.search.finish()
        if self.plan is None or self.folder is None or self._watch is None:
            return 0
        self._watch.stop()
        self._held.close()
        self._tell()
        if self._mirror is not None:
            self._mirror.try_update()
        statuses = [status_of(self.folder / cell.folder)[0] for cell in self.plan.cells]
        if self.plan.refused:
            return 2
        return int(any(status != "finished" for status in statuses))


@dataclass(frozen=True, slots=True)
class Search:
    """A sweep whose sweeper (Optuna) proposes cells as it goes, judged by ``primary`` alone."""

    folder: Path
    primary: str

    def finish(self) -> int:
        """Report all cells against the best one, and name it; 1 when none finished or one failed.

        A cell that diverged is an answer too: these values are no good.
        """
        from dollyllama.study.analyse import direction
        from dollyllama.study.report import write_report

        found = [
            (value, about["variant"])
            for cell, about in finished_cells(self.folder)
            if (value := _primary(cell, self.primary)) is not None
        ]
        if not found:
            print(f"no cell in {_shown(self.folder)} has finished", file=sys.stderr)
            return 1
        value, variant = max(found, key=lambda each: direction(self.primary) * each[0])
        write_report(
            self.folder, [self.folder], baseline=variant, primary=self.primary, selected=True
        )
        print(
            f"the best of {len(found)}: {variant.replace('+', ' ')}: {self.primary} {value:.4f}\n"
            "The best of many is lucky as well as good: compare it with the recipe over seeds of "
            f"their own.\n{_shown(self.folder) / 'report.html'}"
        )
        statuses = [status_of(file.parent)[0] for file in self.folder.glob("*/result.json")]
        return int("failed" in statuses)


SESSION = Session()


class StudyCallback(Callback):
    """Hydra's callback (conf/train.yaml) that plans a sweep before its first job."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        # Hydra turns an Exception of a callback into a warning, and lets SystemExit pass.
        from dollyllama import launch

        try:
            with launch.reported_to_user():
                self._plan(config)
                prepare(config.hydra.launcher)
        except Exception as error:  # or the jobs would be run without a plan
            print(f"error: no plan: {type(error).__name__}: {error}", file=sys.stderr)
            raise SystemExit(launch.FAILED) from error

    def _plan(self, master: DictConfig) -> None:
        folder = Path(master.hydra.sweep.dir).absolute()
        if str(master.hydra.launcher._target_).endswith(".JoblibLauncher"):
            _end_cells_first(folder)
        if not str(master.hydra.sweeper._target_).endswith(".BasicSweeper"):
            SESSION.search = _search(master, folder)
            return
        if master.sweep.prune_after is not None:
            raise ValueError(
                "sweep.prune_after is for a search: a study compares cells trained to their end"
            )
        plan = plan_study(list(_jobs(master)))
        _check_claims(plan)
        mirror = remote.mirror_of(folder, plan.tracking.mirror)
        here = SESSION.dry_run or (folder / PLAN_FILE).exists()
        if mirror is not None and not here and PLAN_FILE in remote.names(mirror.url):
            remote.fetch(mirror.url, folder)  # begun on another machine
        for cell in plan.cells:
            check_own(folder / cell.folder, cell)
        planned = {cell.folder for cell in plan.cells}
        if others := [cell for cell, _ in finished_cells(folder) if cell.name not in planned]:
            print(
                f"not in this plan, and left as they are: {len(others)} finished cells in "
                f"{_shown(folder)}",
                file=sys.stderr,
            )
        at_once = _at_once(master)
        from dollyllama import launch

        claiming = plan.settings.tips.keys() | plan.settings.better.keys()
        if claiming & {*plan.baseline.split("+")}:
            print(
                f"no claim will be judged: they are about the recipe, and the baseline is "
                f"{plan.baseline}; put the recipe first, ablation=baseline,{plan.baseline},…",
                file=sys.stderr,
            )
        if len({cell.seed for cell in plan.cells}) == 1 < len({c.variant for c in plan.cells}):
            print(
                "one seed: no effect will have an interval; seed=range(3) runs each with three",
                file=sys.stderr,
            )
        if SESSION.dry_run:
            print(plan_text(plan, _shown(folder), at_once=at_once))
            raise SystemExit(launch.MENDABLE if plan.refused else 0)
        for variant, reason in plan.left_out.items():
            print(f"left out: {variant}: {reason}", file=sys.stderr)
        for overrides, reason in plan.refused:
            print(f"error: {' '.join(overrides)}: {reason}", file=sys.stderr)
        # The plan has composed every job. Hydra's sweeper would do so again before the first one
        # starts, with the cores idle: 20 s of the default study.
        Sweeper.validate_batch_is_legal = _composed_already  # type: ignore[method-assign]
        SESSION.start(plan, folder)


def _end_cells_first(folder: Path) -> None:
    """Let cells write their checkpoints before Ctrl-C or SIGTERM ends this process.

    joblib would kill its workers and all that they started. What comes a second time ends at once.
    """

    def end(number: int, frame: FrameType | None) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        for worker in multiprocessing.active_children():
            worker.terminate()  # each passes it on to its cell
        wait_for_cells(folder)
        signal.raise_signal(number)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: each for number, each in handlers.items() if callable(each)}  # none ignored
    for number in before:
        signal.signal(number, end)


def _composed_already(self: Sweeper, batch: Sequence[Sequence[str]]) -> None:
    """What takes the place of ``Sweeper.validate_batch_is_legal``."""


def _check_claims(plan: StudyPlan) -> None:
    """Refuse a claim or factor that is neither a variant of the sweep nor an ablation."""
    from dollyllama import launch

    known = {cell.variant for cell in plan.cells} | plan.left_out.keys()
    known |= {path.stem for path in (launch.CONF / "ablation").glob("*.yaml")}
    known |= {part for variant in known for part in variant.split("+")}
    for key, joint in (("tips", "."), ("better", "."), ("factors", "="), ("optional", "=")):
        for name in getattr(plan.settings, key):
            if name not in known:
                near = get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise ValueError(f"sweep.{key}{joint}{name} names no variant: did you mean {near}?")


def _search(master: DictConfig, folder: Path) -> Search:
    """What is to be known of a search before its first cell; a dry run ends here.

    ValueError where its cells cannot run, and where the sweeper would look for the worst.
    """
    from dollyllama import preflight
    from dollyllama.study.analyse import direction

    ranges = _ranges(master)
    if "seeds" in ranges:
        raise ValueError("seeds has no effect on a search: give seed=N, which all its cells have")
    run = build(compose(master.hydra.job.config_name, _likely(master, ranges)))
    preflight.check(run)
    primary = run.evaluation.primary
    if primary is None:
        raise ValueError("a search needs a metric to judge by: evaluation.primary=loss/all")
    wanted = "minimize" if direction(primary) < 0 else "maximize"
    given = OmegaConf.select(master, "hydra.sweeper.direction")
    if given is not None and str(given).rpartition(".")[2] != wanted:
        raise ValueError(f"for {primary} it must be hydra.sweeper.direction={wanted}, not {given}")
    if run.sweep.prune_after is not None:
        _check_pruning(primary, run.trainer.eval_steps, run.trainer.max_steps)
    if SESSION.dry_run:
        shown = {key: each.get_value_string() for key, each in ranges.items()}
        trials, jobs = (
            OmegaConf.select(master, f"hydra.sweeper.{key}") for key in ("n_trials", "n_jobs")
        )
        at_once = min(_at_once(master), jobs or 1)
        print(search_text(shown, trials, run, folder=_shown(folder), at_once=at_once))
        raise SystemExit(0)
    return Search(folder, primary)


def _ranges(master: DictConfig) -> dict[str, Override]:
    """What a search chooses from, by key: as its config has it, or the command line instead."""
    ranges = {each.get_key_element(): each for each in _parsed(_params(master))}
    for each in _parsed(master.hydra.overrides.task):
        if each.is_sweep_override() or each.get_key_element() in {*ranges, "seeds"}:
            ranges[each.get_key_element()] = each
    return ranges


def _likely(master: DictConfig, ranges: dict[str, Override]) -> list[str]:
    """The overrides of a cell that a search may propose: of each range the first value."""
    given = _parsed(master.hydra.overrides.task)
    fixed = [each.input_line for each in given if each.get_key_element() not in ranges]
    first = []
    for key, each in ranges.items():
        value: Any = each.value()
        if isinstance(value, ChoiceSweep):
            value = value.list[0]
        elif isinstance(value, RangeSweep | IntervalSweep):
            value = value.start
        first.append(f"{key}={Override._get_value_element_as_str(value)}")
    return [*map(str, fixed), *first]


def _params(master: DictConfig) -> list[str]:
    """The axes that a sweeper's own config names, as overrides; not every sweeper has any."""
    params = OmegaConf.select(master, "hydra.sweeper.params") or {}
    return [f"{key}={value}" for key, value in params.items()]


def _parsed(overrides: Iterable[str]) -> list[Override]:
    loader = GlobalHydra.instance().config_loader()  # knows the options that glob(*) stands for
    return list(OverridesParser.create(loader).parse_overrides(list(overrides)))


def _check_pruning(primary: str, eval_steps: int | None, max_steps: int | None) -> None:
    """ValueError where no cell could be judged on its way."""
    judges = "sweep.prune_after judges cells by their loss on the way, "
    if not primary.startswith("loss/"):
        raise ValueError(
            f"{judges}not by {primary}: give sweep.prune_after=null, or evaluation.primary=loss/all"
        )
    if eval_steps is None or (max_steps is not None and eval_steps >= max_steps):
        given = "null" if eval_steps is None else eval_steps
        total = "" if max_steps is None else f" of {max_steps}"
        raise ValueError(
            f"{judges}and trainer.eval_steps={given} measures none: give it fewer steps{total}, or "
            "sweep.prune_after=null"
        )


def run_job(composed: DictConfig, hydra_config: Any) -> float | None:
    """Run the cell that a job of a sweep is; its primary metric, for sweepers that optimise.

    Failures are recorded in the cell's folder, and the other jobs go on; the metric is then None,
    and infinitely bad of a cell that diverged.
    """
    from dollyllama.study.analyse import direction

    die_with_parent()
    if SESSION.interrupted:  # a worker that was told to end gets what was waiting all the same
        raise Terminated
    if multiprocessing.parent_process() is not None:
        end_on_sigterm()
    mask_output(stdout=True)  # a worker's own
    folder = Path(hydra_config.runtime.cwd, hydra_config.sweep.dir)  # a worker may be elsewhere
    overrides = list(hydra_config.overrides.task)
    try:
        run = build(composed)
        planned = plan_cell(run, _axes(overrides, hydra_config))
    except ValueError as error:
        if not (folder / PLAN_FILE).exists():  # the plan has said so already
            print(f"error: {' '.join(overrides)}: {error}", file=sys.stderr)
        return None
    cells: list[Planned] = []
    if (folder / PLAN_FILE).exists():
        cells = read_plan(folder)
        found = next((cell for cell in cells if cell.fingerprint == planned.fingerprint), None)
        if found is None:  # left out, and told so before the first job; or
            if any(set(cell.overrides) <= set(overrides) for cell in cells):
                changed = "code or config has changed since the sweep began: give the command again"
                print(f"error: {' '.join(overrides)}: {changed}", file=sys.stderr)
            return None
        planned = found
    rule = None if cells else _rule(run, hydra_config)
    if rule is not None:
        note_proposal(folder, rule.number, planned.folder)
    hopeless = partial(_hopeless, folder, cells, run.sweep.fail_fast)
    if hopeless():
        return None
    try:
        status, reason = run_cell(
            run,
            planned,
            folder,
            share=partial(slot, folder, _at_once_of(hydra_config)),
            hopeless=hopeless,
            minutes=run.sweep.cell_minutes,
            prune=None if rule is None else rule.verdict,
        )
    except KeyboardInterrupt:
        SESSION.interrupted = True
        raise
    value = _primary(folder / planned.folder, run.evaluation.primary)
    if not cells:  # nobody watches over a search
        result = reason if value is None else f"{run.evaluation.primary} {value:.4f}"
        print(f"{planned.variant.replace('+', ' ')}: {status}: {result}", file=sys.stderr)
    if status == "diverged" and run.evaluation.primary is not None:
        return -math.inf * direction(run.evaluation.primary)  # the worst there is
    if rule is not None and status == "pruned":
        return min(losses_on_the_way(folder / planned.folder, rule.metric).values())
    return value


def _rule(run: config.Run, hydra_config: Any) -> MedianRule | None:
    """What ends a cell of a search early, if anything does."""
    if run.sweep.prune_after is None or run.evaluation.primary is None:
        return None
    return MedianRule(
        metric=run.evaluation.primary,
        number=hydra_config.job.num,
        at_once=OmegaConf.select(hydra_config, "sweeper.n_jobs") or 1,  # Optuna's alone
        least=run.sweep.prune_after,
    )


def _axes(overrides: Sequence[str], hydra_config: Any) -> list[str]:
    """The overrides of the sweeper's own axes, where its config names them."""
    named = hydra_config.sweeper.params
    return [each for each in overrides if not named or each.partition("=")[0] in named]


def build(composed: DictConfig) -> config.Run:
    """A checked config of a job: ``config.build`` without the keys that are the study's."""
    values = OmegaConf.to_container(composed)
    assert isinstance(values, dict)
    return config.build(OmegaConf.create({k: v for k, v in values.items() if k not in _STUDY_KEYS}))


def _jobs(master: DictConfig) -> Iterator[tuple[Job, Planned | None]]:
    """Every job that Hydra's own sweeper will make, composed and checked.

    Seeds share one composition.
    """
    from dollyllama import launch, preflight

    parsed = _parsed([*_params(master), *master.hydra.overrides.task])
    _check_seeds(master, {each.get_key_element() for each in parsed})
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
            if seed is not None and not re.fullmatch(r"-?[0-9]+", seed):
                raise ValueError(f"seed must be a whole number, not {seed}")
            run = run_or_none if seed is None else replace(run_or_none, seed=int(seed))
            yield Job(axes, run), plan_cell(run, axes)


def _check_seeds(master: DictConfig, given: set[str]) -> None:
    """Refuse a number of seeds that is none, or that no axis uses."""
    seeds = master.get("seeds", 1)
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, not {seeds}")
    if "seeds" in given and "seed" not in given:
        raise ValueError(
            f"seeds={seeds} has no effect with axes of your own: give seed=range({seeds})"
        )


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
    return max(1, _at_once_of(master.hydra))


def _at_once_of(hydra_config: Any) -> int:
    """How many cells share this machine; 0 where Ray or Slurm shares it out itself."""
    launcher = str(hydra_config.launcher._target_)
    if launcher.endswith(".BasicLauncher"):
        return 1
    if launcher.endswith("submitit_launcher.LocalLauncher"):
        return cells_at_once()  # it starts all jobs at once: they wait for a slot
    jobs = int(OmegaConf.select(hydra_config, "launcher.n_jobs") or 0)
    return max(1, usable_cores() + 1 + jobs) if jobs < 0 else jobs  # as joblib counts


def _primary(cell: Path, name: str | None) -> float | None:
    """The value of a cell's primary metric; None when it has none."""
    try:
        metrics = read_result(cell)["metrics"]
        return next(float(each["value"]) for each in metrics["after"] if each["name"] == name)
    except (ValueError, KeyError, TypeError, StopIteration):
        return None


def _shown(folder: Path) -> Path:
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
