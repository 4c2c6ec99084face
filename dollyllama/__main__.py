"""The verbs: ``python -m dollyllama VERB``, each on a run folder or on ``train.py``'s overrides."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches

from dollyllama import distributed, launch, remote
from dollyllama.explain import one_line
from dollyllama.redact import mask_output
from dollyllama.verbs import (
    dashboard,
    evaluate,
    export,
    generate,
    latency,
    merge,
    plan,
    prepare,
    report,
    serve,
    show,
)

#: A verb gets the rest of the command line and returns an exit status, or None for 0. The first
#: line of its docstring is its help.
VERBS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "prepare": prepare.main,
    "plan": plan.main,
    "show": show.main,
    "evaluate": evaluate.main,
    "generate": generate.main,
    "merge": merge.main,
    "export": export.main,
    "latency": latency.main,
    "serve": serve.main,
    "report": report.main,
    "dashboard": dashboard.main,
}


def main(arguments: Sequence[str]) -> int:
    """Run a verb; the exit status is 2 for what the user can mend, 130 when interrupted."""
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(_usage())
        return 0
    verb, *rest = arguments
    try:
        if verb not in VERBS:
            meant = get_close_matches(verb, VERBS, n=1)
            hint = f": did you mean {meant[0]}?" if meant else f": there are {', '.join(VERBS)}"
            raise ValueError(f"there is no verb {verb}{hint}")
        if distributed.processes() > 1:
            raise ValueError(f"{verb} is for one process: start it without torchrun")
        status = VERBS[verb](rest)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone (`show RUN | head`); the interpreter would complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {remote.by_url(one_line(str(error)))}", file=sys.stderr)
        return launch.MENDABLE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return launch.INTERRUPTED
    return status or 0


def _usage() -> str:
    lines = ["usage: python -m dollyllama VERB ...; VERB --help tells more", ""]
    lines += [f"  {name:10} {function.__doc__}" for name, function in VERBS.items()]
    return "\n".join([*lines, "", "Runs are made by train.py: python train.py --help"])


if __name__ == "__main__":
    mask_output(stdout=False)
    sys.exit(main(sys.argv[1:]))
