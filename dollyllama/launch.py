"""The Hydra side: from a command line to a checked config, and from its failure to one line.

Exit statuses: 0 done, 1 the run failed, 2 something that the user can mend, 75 stopped by Ctrl-C or
SIGTERM, and the same command goes on: what sysexits.h calls EX_TEMPFAIL, and schedulers can be told
to start again. A verb that is interrupted ends with 130.
``HYDRA_FULL_ERROR=1`` gives tracebacks instead of lines.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from traceback import walk_tb
from typing import NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal import config_loader_impl, utils
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError  # type: ignore[import-untyped]

from dollyllama import config, distributed, record, remote, sweeping
from dollyllama.explain import explain, explain_option, explain_unknown_key, first_line, one_line
from dollyllama.files import read_signed_json
from dollyllama.interrupt import end_on_sigterm
from dollyllama.record import Status
from dollyllama.redact import mask_output

CONF = Path(__file__).resolve().parents[1] / "conf"
FAILED, MENDABLE, RESUMABLE, INTERRUPTED = 1, 2, 75, 130

#: Keys and sections under which a run may go on with other values: they leave its result alone.
_FREE = ("tracking", "trainer.checkpoint_steps", "trainer.keep_checkpoints")

#: What a user can mend, and what comes out of the libraries for it.
_EXPECTED = (ValueError, OSError, HydraException, OmegaConfBaseException, YAMLError)
#: What comes out of them besides, while they read files and overrides.
_COMPOSING = (*config.YAML_FAULTS, AssertionError)

#: What Hydra's launchers and sweepers that do not come along are installed by.
_PLUGINS = {
    "optuna": "pip install -c constraints.txt -e '.[optuna]'",
    "submitit": "pip install -e '.[submitit]'",
    "ray": "docs/ray.md says how to install it",
}
#: Hydra's flags that print something and run nothing.
_PRINTING = {
    *("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i"),
    *("--shell-completion", "-sc"),
}
#: Libraries whose errors say what became of a sweep's workers.
_LAUNCHERS = ("joblib", "ray", "submitit")

#: What ``--help`` prints. Hydra's own takes longer to list the groups than all the rest takes.
_HELP = """\
Train a QLoRA adapter: python train.py [GROUP=OPTION ...] [SECTION.KEY=VALUE ...]

  python train.py                                   the embedded model and sample, offline
  python train.py lora.r=8 optimizer.lr=1e-3        other values
  python train.py data=sql optimizer=adamw_8bit     other options of groups
  python train.py experiment=dollyllama_7b          a whole recipe (its file tells the cost)
  python train.py --multirun lora.r=8,16 seed=0,1   every combination, one run each, and a report
  python sweep.py                                   a study: every tip with and without, 3 seeds
  python sweep.py sweep=ranks seeds=5 --dry-run     another one: what it would run
  python train.py resume=RUN_FOLDER                 go on with a run that stopped
  python train.py --cfg job [overrides]             print the composed config, run nothing

Groups and their options (files in conf/):

{groups}

Often set: model.path data.root data.max_length data.max_rows lora.r lora.alpha optimizer.lr
  trainer.epochs trainer.max_steps trainer.batch_size trainer.accumulation seed device

Results: a folder below runs/ (hydra.run.dir=FOLDER names another; sweeps below runs/sweeps/),
  with config.yaml, data.json, metrics.jsonl, result.json, samples.jsonl and adapter/.
  python -m dollyllama show RUN_FOLDER tells it on one screen.
A new source in the mix: +source@data.sources.NAME=OPTION. Hydra's own flags: --hydra-help.
"""


def main(hydra_main: Callable[[], None], *, sweeps: bool = False) -> NoReturn:
    """Run a function decorated by ``hydra.main`` on the command line, and exit with its status.

    sweeps: it does so without --multirun too.
    """
    mask_output(stdout=True)
    if not distributed.is_first():
        # It reads no command of its own: were it to refuse one before the first has said why, their
        # launcher would end that in the middle of its line.
        if not {argument.partition("=")[0] for argument in sys.argv[1:]} & _PRINTING:
            _follow()
        sys.exit(0)
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text(), end="")
        sys.exit(0)
    end_on_sigterm()
    ConfigStore.instance().store(name="schema", node=config.Study if sweeps else config.Run)
    sweeps = sweeps or bool({"--multirun", "-m", "hydra.mode=MULTIRUN"} & set(sys.argv[1:]))
    if sweeps and distributed.processes() > 1:
        _say(
            "a sweep starts its cells itself: start it without torchrun or accelerate launch, and "
            "docs/launchers.md says how it uses several GPUs and machines",
            MENDABLE,
        )
        sys.exit(MENDABLE)
    if _wants_tracebacks():
        _prepare_command_line(sweeps)
        hydra_main()
        sys.exit(sweeping.SESSION.finish())
    # Hydra would print its errors over several lines and exit with 1: let them through instead.
    utils.run_and_report = lambda func: func()
    try:
        _prepare_command_line(sweeps)
        hydra_main()
        status = sweeping.SESSION.finish()
    except (*_EXPECTED, *_COMPOSING) as error:
        _raise_unless_mendable(error)
        status = MENDABLE
        _say(describe(error), status)
    except KeyboardInterrupt:
        sweeping.SESSION.finish()
        status = RESUMABLE
        _say("interrupted: the same command " + ("goes on" if sweeps else "starts again"), status)
    except Exception as error:
        library = type(error).__module__.partition(".")[0]
        if library not in _LAUNCHERS:
            raise
        sweeping.SESSION.finish()
        status = FAILED
        line = f"{library}: {type(error).__name__}: {first_line(error)}"
        _say(f"{line}; when that is mended, the same command goes on", status)
    sys.exit(status)


def _prepare_command_line(sweeps: bool) -> None:
    """Check ``sys.argv`` and put it in the form that Hydra reads; ValueError as of the parts."""
    _prepare_sweep(sweeps)
    _check_flags(sys.argv[1:])
    _gather_overrides()


def _prepare_sweep(sweeps: bool) -> None:
    """Take ``--dry-run`` from the command line, and give a sweep a folder that it finds again.

    ValueError for a dry run of a single one.
    """
    plain = {"--dry-run", "mode=plan"}
    sweeping.SESSION.dry_run = bool(plain & set(sys.argv[1:]))
    sys.argv[1:] = [argument for argument in sys.argv[1:] if argument not in plain]
    if not sweeps:
        if sweeping.SESSION.dry_run:
            raise ValueError("--dry-run plans a sweep: add --multirun, or use sweep.py")
        for argument in sys.argv[1:]:
            if _overridden_key(argument).partition(".")[0] == "sweep":
                raise ValueError(f"{argument} has no effect on a single run: add --multirun")
        return
    for argument in sys.argv[1:]:
        if _overridden_key(argument) == "resume":
            raise ValueError(f"{argument} has no effect on a sweep: its command goes on by itself")
    if not any(argument.startswith("hydra.sweep.dir=") for argument in sys.argv[1:]):
        choice = "tips" if Path(sys.argv[0]).stem == "sweep" else "multirun"
        folder = sweeping.default_folder(sys.argv[1:], choice)
        sys.argv.insert(1, f"hydra.sweep.dir='{folder}'")
    # From a config that does not compose Hydra cannot tell that it is a sweep's, and would blame
    # the axes.
    if not {*_PRINTING, "--multirun", "-m"} & set(sys.argv[1:]):
        sys.argv.append("--multirun")


@contextmanager
def reported_to_user() -> Iterator[None]:
    """Turn an expected error into its line and SystemExit, which Hydra leaves alone."""
    try:
        yield
    except (*_EXPECTED, _UnfinishedError) as error:
        if _wants_tracebacks():
            raise
        status = error.status if isinstance(error, _UnfinishedError) else MENDABLE
        _say(describe(error), status)
        raise SystemExit(status) from error


def task(composed: DictConfig) -> float | None:
    """Check one composed config and run it: what Hydra calls for every job.

    The primary metric of a sweep's cell, None for a single run.
    """
    hydra_config = HydraConfig.get()
    proposed = Path(hydra_config.runtime.output_dir)
    overrides = list(hydra_config.overrides.task)
    if hydra_config.mode is RunMode.MULTIRUN:
        return sweeping.run_job(composed, hydra_config)
    with _removed_when_empty(proposed), reported_to_user():
        if composed.resume is None:
            folder, run_config = proposed, config.build(composed)
            _refuse_another(folder, run_config)
        else:
            folder = _resumed_folder(
                composed.resume,
                proposed,
                named=any(
                    each.startswith("hydra.run.dir=") for each in hydra_config.overrides.hydra
                ),
            )
            run_config = _resumed_config(folder, composed, overrides)
        mirror = remote.mirror_of(folder, run_config.tracking.mirror)
        if mirror is not None:
            _take_up(mirror, run_config)
        if _is_finished(folder):
            print(f"{folder} is finished: there is nothing to resume")
            with distributed.group():
                distributed.from_first(None)
            if mirror is not None:
                mirror.update()
            return None
        # Not needed by --cfg, --help and most errors, which are to answer at once.
        from dollyllama import preflight

        preflight.check(run_config)
        preflight.check_processes(run_config)
        preflight.check_sandbox(run_config)
        with distributed.group():
            distributed.from_first((run_config, folder.resolve()))
            _run(run_config, folder)
    return None


def _follow() -> None:
    """Take part in the run that the first process decides on, whose status is that of the run."""
    distributed.end_at_once()
    try:
        with reported_to_user(), distributed.group():
            told = distributed.from_first()
            if told is None:
                return
            from dollyllama.run import follow
            from dollyllama.training.fit import Diverged

            with suppress(Diverged):
                follow(*told)
    except KeyboardInterrupt:  # asked a second time, while it trains
        sys.exit(RESUMABLE)


def _run(run_config: config.Run, folder: Path) -> None:
    # The libraries take ten seconds to import: only a config that passed is worth them.
    from dollyllama.run import run
    from dollyllama.training.fit import Diverged

    try:
        result = run(run_config, folder)
    except Diverged as error:
        raise _UnfinishedError(FAILED, str(error)) from error
    except OSError as error:
        if not (folder / "config.yaml").is_file():
            raise
        line = f"{describe(error)}; when that is mended, {_goes_on(folder, run_config)}"
        raise _UnfinishedError(MENDABLE, line) from error
    except KeyboardInterrupt as error:
        raise _UnfinishedError(RESUMABLE, f"interrupted: {_goes_on(folder, run_config)}") from error
    if result.status is Status.interrupted:
        raise _UnfinishedError(RESUMABLE, f"interrupted: {_goes_on(folder, run_config)}")


class _UnfinishedError(Exception):
    """A run that did not finish: its exit status, and the line that says why."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


def _goes_on(folder: Path, run_config: config.Run) -> str:
    return f"{record.resume_command(_shown(folder), run_config.tracking.mirror)} goes on"


@contextmanager
def _removed_when_empty(folder: Path) -> Iterator[None]:
    """Hydra has made the folder of a run; it goes again when nothing was written to it."""
    try:
        yield
    finally:
        with suppress(OSError):
            folder.rmdir()


def compose_run(overrides: Sequence[str]) -> config.Run:
    """Compose and check the config that ``python train.py`` with these overrides would run.

    ValueError in one line when it cannot be.
    """
    return config.build(_compose(overrides))


def _compose(overrides: Sequence[str]) -> DictConfig:
    ConfigStore.instance().store(name="schema", node=config.Run)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("train", list(overrides))
    except (*_EXPECTED, *_COMPOSING) as error:
        _raise_unless_mendable(error)
        raise ValueError(describe(error)) from error


def _raise_unless_mendable(error: Exception) -> None:
    """Raise what is no user's to mend. Readers of YAML raise KeyErrors and the like too: those
    count where they come up while Hydra reads files."""
    if isinstance(error, _EXPECTED):
        return
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    if all(frame.f_globals["__name__"] != config_loader_impl.__name__ for frame in frames):
        raise error


def describe(error: BaseException) -> str:
    """One line for an error of Hydra, OmegaConf, YAML, the file system or our own."""
    if isinstance(error, OverrideParseException):
        return _describe_override(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if group.startswith("hydra/") and (install := _PLUGINS.get(option.partition("_")[0])):
            return f"{group}={option} needs a plugin: {install}"
        return explain_option(group, option, error.options)
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name} line {mark.line + 1} is not YAML: {one_line(str(error.problem))}"
    if isinstance(error, HydraException):
        return _describe_composition(error)
    if isinstance(error, OmegaConfBaseException):
        return explain(error, config.Run, groups())
    if "Config group override must be a string" in str(error):
        return (
            "the value of a config group is the name of one of its options, no number and no null "
            "(~GROUP leaves it out): --help lists them"
        )
    if isinstance(
        error, LookupError | TypeError | AttributeError | RecursionError | AssertionError
    ):
        what = f"{type(error).__name__}: {one_line(str(error))}"
        return (
            f"the config cannot be composed ({what}): a file of it holds odd YAML, or a key stands "
            f"below one that has no keys"
        )
    return one_line(str(error)) or type(error).__name__


def groups() -> list[str]:
    """The names of the config groups."""
    return sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")


def help_text() -> str:
    """What ``--help`` prints: how to call, every group with its options, where results go."""
    options = {
        group: ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
        for group in groups()
    }
    listed = [
        textwrap.fill(f"{group}: {names}", 100, initial_indent="  ", subsequent_indent="    ")
        for group, names in options.items()
    ]
    return _HELP.format(groups="\n".join(listed))


def _describe_override(error: OverrideParseException) -> str:
    override = error.override
    if "=" not in override and not override.startswith("~"):
        return f"{override} has no value: write {override}=VALUE"
    cause = first_line(error.__cause__ or error)
    return (
        f"{override} cannot be read ({cause}): write KEY=VALUE, and quote a value with special "
        f"characters twice, '{override.partition('=')[0]}=\"VALUE\"'"
    )


def _describe_composition(error: HydraException) -> str:
    message = str(error)
    place = re.match(r"In '([^']+)'", message)
    where = f" (in {place[1]})" if place and place[1] != "train" else ""
    if match := re.match(r"Ambiguous value for argument '(.*)'", message):
        key, _, values = match[1].partition("=")
        return (
            f"{match[1]} is several values: add --multirun to sweep over them, or write "
            f"{key}=[{values}]"
        )
    if match := re.search(r"Could not override '([^']+)'\. No match in the defaults list", message):
        return explain_unknown_key(match[1].lstrip("/"), config.Run, groups()) + where
    # An option of ours that is made of a plugin's.
    missing = re.match(r"In '(hydra/\w+)/(\w+)': Could not load '\1/(\w+)'", message)
    if missing and (install := _PLUGINS.get(missing[3])):
        return f"{missing[1]}={missing[2]} needs a plugin: {install}"
    cause = _omegaconf_cause(error)
    if cause is not None:
        if "is not a subclass of Source" in str(cause):
            name = str(cause.full_key).rpartition(".")[2]
            return (
                f"data.sources.{name} is not there: add it whole, "
                f"+source@data.sources.{name}=OPTION"
            )
        return explain(cause, config.Run, groups()) + where
    return one_line(message.partition("Config search path")[0])


def _omegaconf_cause(error: BaseException) -> OmegaConfBaseException | None:
    """The outermost of OmegaConf's errors behind one of Hydra's."""
    behind = error.__cause__ or error.__context__
    while behind is not None and not isinstance(behind, OmegaConfBaseException):
        behind = behind.__cause__ or behind.__context__
    return behind


def _check_flags(arguments: Sequence[str]) -> None:
    """Refuse in one line unknown flags, of which Hydra's parser would print its whole usage, and
    folders at a URL, which Hydra would make here under an odd name."""
    known = {flag for action in utils.get_args_parser()._actions for flag in action.option_strings}
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag.startswith("-") and flag not in known:
            raise ValueError(f"there is no flag {flag}: --help and --hydra-help list them")
        if flag in {"hydra.run.dir", "hydra.sweep.dir"} and remote.is_remote(argument):
            raise ValueError(
                f"{argument} names a URL: name a folder here, and tracking.mirror=URL keeps a copy "
                f"of it there"
            )


def _gather_overrides() -> None:
    """Put the overrides before the flags: Hydra's parser takes them from one place among these."""
    overrides = utils.get_args_parser().parse_intermixed_args().overrides
    flags = [argument for argument in sys.argv[1:] if argument not in overrides]
    sys.argv[1:] = [*overrides, *flags]


# --- folders and resuming -----------------------------------------------------------------------


def _take_up(mirror: remote.Mirror, run_config: config.Run) -> None:
    """Go on with the run that the mirror has, if any: fetch it where it is not here.

    ValueError when it is one of another config.
    """
    if "config.yaml" not in remote.names(mirror.url):
        return
    saved = remote.local(f"{mirror.url}/config.yaml")
    _refuse_another(saved.parent, run_config, named=mirror.url)
    if not (mirror.folder / "config.yaml").exists():
        remote.fetch(mirror.url, mirror.folder)


def _resumed_folder(resume: str, proposed: Path, *, named: bool) -> Path:
    """The run to go on with; a remote one is fetched, by its own name beside ``proposed``.

    named: whether ``proposed`` is what the user wants it to be called.

    ValueError when that is here already, or is no run.
    """
    if not remote.is_remote(resume):
        return Path(resume).expanduser()
    url = resume.rstrip("/")
    folder = proposed if named else proposed.parent / url.rpartition("/")[2]
    if folder.exists() and any(folder.iterdir()):
        shown = shlex.quote(str(_shown(folder)))
        raise ValueError(
            f"{shown} is here already: resume={shown} goes on with it; to go on with {url}, move "
            f"it away or give hydra.run.dir=FOLDER"
        )
    if "config.yaml" not in remote.names(url):
        raise ValueError(f"resume={url} is no run folder: it has no config.yaml")
    remote.fetch(url, folder)
    return folder


def _refuse_another(folder: Path, run_config: config.Run, named: str | None = None) -> None:
    """ValueError when ``folder`` holds a run of another config; one of this config goes on.

    named: what it is a copy of.
    """
    path = folder / "config.yaml"
    if not path.exists():
        return
    saved, given = asdict(config.load(path)), asdict(run_config)
    there, here = config.differences(saved, given), config.differences(given, saved)
    changed = [
        f"{key} ({_brief(there[key])} there, {_brief(here[key])} here)"
        for key in there
        if not _is_free(key)
    ]
    if changed:
        shown = shlex.quote(named or str(_shown(folder)))
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ValueError(
            f"{shown} holds a run of another config, which differs in {', '.join(changed[:3])}"
            f"{more}: resume={shown} continues it as it is, hydra.run.dir=FOLDER starts another one"
        )


def _brief(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= 40 else f"{line[:39]}…"


def _is_free(key: str) -> bool:
    """Whether a run goes on the same under another value of this key."""
    return any(key == free or key.startswith(f"{free}.") for free in _FREE)


def _resumed_config(folder: Path, composed: DictConfig, overrides: Sequence[str]) -> config.Run:
    """The config of the run in ``folder``, with overrides of what leaves no trace in its result."""
    file = _config_file(folder, "resume=")
    record.check(folder)
    saved = config.read(file)
    for override in overrides:
        key = _overridden_key(override)
        if _is_free(key):
            OmegaConf.update(saved, key, OmegaConf.select(composed, key), merge=False)
        elif key != "resume":
            raise ValueError(
                f"{override} would change the run that resume={_shown(folder)} continues: only "
                f"{', '.join(_FREE)} can be given anew; leave it out, or start another run without "
                f"resume"
            )
    mirror = OmegaConf.select(saved, "tracking.mirror")
    typed = "tracking.mirror" in map(_overridden_key, overrides)
    if (
        mirror is not None
        and not typed
        and composed.resume.rstrip("/").rpartition("/")[0] != (str(mirror).rstrip("/"))
    ):
        # A folder from somebody else must not send what it reads here to wherever it likes.
        raise ValueError(
            f"{file} sends a copy of the run to {mirror}: add tracking.mirror={mirror} to go on "
            f"so, or tracking.mirror=null"
        )
    return config.build(saved, str(folder / "config.yaml"))


def reopen_run(
    folder: Path,
    overrides: Sequence[str],
    *,
    sections: Sequence[str],
    sources: dict[str, config.Source] | None = None,
) -> config.Run:
    """The config of the finished run in ``folder``, with overrides in ``sections`` alone.

    sources: what to take in place of the run's own data; the run's primary metric then becomes null
    where it is that of an own source that is not among them. ValueError in one line for another
    section, or when ``folder`` is no run or its record is not as it was written.
    """
    saved = config.read(_config_file(folder))
    record.check(folder)
    composed = _compose(overrides)  # a typo is told by its nearest name
    keys = [_overridden_key(override) for override in overrides]
    for key, override in zip(keys, overrides, strict=True):
        if not _is_in(key, sections):
            raise ValueError(
                f"{override} cannot be changed for a run that is done: {', '.join(sections)} can"
            )
    for key in keys:
        OmegaConf.update(saved, key, OmegaConf.select(composed, key), merge=False)
    if sources is not None:
        own = OmegaConf.select(saved, "data.sources") or {}
        primary = str(OmegaConf.select(saved, "evaluation.primary"))
        gone = own.keys() - sources.keys()
        if primary.partition("/")[2] in gone and "evaluation.primary" not in keys:
            OmegaConf.update(saved, "evaluation.primary", None)
        replacement = {name: asdict(source) for name, source in sources.items()}
        OmegaConf.update(saved, "data.sources", replacement, merge=False)
        OmegaConf.update(saved, "data.root", None)
    return config.build(saved, str(folder / "config.yaml"))


def _overridden_key(override: str) -> str:
    """The group or key that an override is about: "decoding" of "decoding=greedy"."""
    return re.split(r"[=@]", override.lstrip("+~"), maxsplit=1)[0]


def _is_in(key: str, sections: Sequence[str]) -> bool:
    return key.partition(".")[0] in sections


def _config_file(folder: Path, named: str = "") -> Path:
    file = folder / "config.yaml"
    if not file.is_file():
        what = "is no run folder: it has no config.yaml" if folder.is_dir() else "is no folder"
        raise ValueError(f"{named}{folder} {what}; `python train.py` prints the folder of its run")
    return file


def _is_finished(folder: Path) -> bool:
    result = folder / "result.json"
    if not result.exists():
        return False
    try:
        return bool(read_signed_json(result)["status"] == "finished")
    except KeyError as error:
        raise ValueError(f"{result} is damaged: it has no {error}") from error


def _shown(folder: Path) -> Path:
    """A path relative to the working folder where it lies below that."""
    try:
        return folder.relative_to(Path.cwd())
    except ValueError:
        return folder


def _wants_tracebacks() -> bool:
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


def _say(line: str, status: int) -> None:
    line = remote.by_url(line)
    if not distributed.is_first():
        line = f"process {distributed.number()}: {line}"
    print(line if status == RESUMABLE else f"error: {line}", file=sys.stderr)
