"""``serve``: a trained run, or a merged model, behind OpenAI's API."""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dollyllama import config, launch
from dollyllama.files import parse_json
from dollyllama.verbs.parser import open_run, require_positive, run_parser

#: What the extra ``serve`` installs.
_NEEDED = ("pydantic", "starlette", "uvicorn")


def main(arguments: Sequence[str]) -> int:
    """answer over HTTP in the words of OpenAI's API, with this run's decoding"""
    command = run_parser("serve", main.__doc__)
    command.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine")
    command.add_argument("--port", type=int, default=8000, help="default: 8000; 0: a free one")
    command.add_argument(
        "--api-key-env",
        metavar="NAME",
        help="environment variable with the key that callers must send; needed beyond loopback",
    )
    command.add_argument("--max-batch", type=int, default=8, help="answered at once (default: 8)")
    command.add_argument("--max-queue", type=int, default=64, help="may wait (default: 64)")
    command.add_argument(
        "--max-new-tokens", type=int, help="most that one may ask for; default: as the model allows"
    )
    command.add_argument(
        "--timeout", type=float, default=300.0, help="seconds for one answer (default: 300)"
    )
    given = command.parse_intermixed_args(arguments)
    _check(given)
    api_key = _api_key(given.api_key_env)
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"serve needs {', '.join(missing)}: pip install -e '.[serve]'")

    from dollyllama.fast.attach import fast_inference
    from dollyllama.serving.guard import is_loopback
    from dollyllama.serving.server import Server, bind

    if api_key is None and not is_loopback(given.host):
        raise ValueError(
            f"--host {given.host} lets other machines ask: name the environment variable that "
            f"holds a key for them, --api-key-env NAME"
        )
    run_config, merged = _open(given.run, given.overrides)
    bound = bind(given.host, given.port)

    from dollyllama.serving.app import Settings, build_app
    from dollyllama.serving.engine import Engine
    from dollyllama.serving.prompts import PromptCounter

    with bound:
        model, tokenizer = _load(run_config, given.run, merged=merged)
        positions = model.config.max_position_embeddings
        prompt_format = _prompt_of(given.run) if merged else run_config.data.prompt
        engine = Engine(model, tokenizer, max_batch=given.max_batch, max_queue=given.max_queue)
        settings = Settings(
            model=given.run.resolve().name,
            created=int(time.time()),
            decoding=run_config.decoding,
            most_tokens=min(positions, given.max_new_tokens or positions),
            seconds=given.timeout,
            api_key=api_key,
        )
        app = build_app(engine, PromptCounter(tokenizer, positions, prompt_format), settings)
        port = bound.getsockname()[1]
        host = f"[{given.host}]" if ":" in given.host else given.host
        greeting = _greeting(f"http://{host}:{port}", settings.model, given.api_key_env)
        with fast_inference(model):
            Server(app, engine, greeting=greeting).run(sockets=[bound])
    return 0


def _check(given: argparse.Namespace) -> None:
    require_positive(given, "max_batch", "max_queue", "max_new_tokens")
    if not 0 <= given.port < 2**16:
        raise ValueError(f"--port must be in [0, {2**16}), not {given.port}")
    if not 0 < given.timeout < float("inf"):
        raise ValueError(f"--timeout must be a number of seconds above 0, not {given.timeout:g}")


def _api_key(name: str | None) -> str | None:
    """The key in an environment variable. ValueError when it is not there, or no header's text."""
    if name is None:
        return None
    key = os.environ.get(name, "")
    if not key or not key.isascii() or not key.isprintable() or key != key.strip():
        what = "is no printable ASCII text" if key.strip() else "is empty or not set"
        raise ValueError(f"--api-key-env {name}: that environment variable {what}")
    return key


def _open(folder: Path, overrides: Sequence[str]) -> tuple[config.Run, bool]:
    """The config of the run in ``folder``, and whether that is a merged model instead.

    Of a merged model only decoding, device and seed mean anything: those of the overrides.
    """
    if (folder / "config.yaml").exists() or not (folder / "config.json").is_file():
        return open_run(folder, overrides), False
    for override in overrides:
        if not override.startswith(("decoding=", "decoding.", "device=")):
            raise ValueError(
                f"{override} cannot be changed for a merged model: decoding, device can"
            )
    return launch.compose_run(overrides), True


def _prompt_of(merged: Path) -> config.PromptFormat:
    """The format that a merged model was trained on, Alpaca's where ``merge`` did not write it."""
    record = merged / "merge.json"
    if not record.is_file():
        return config.PromptFormat.alpaca
    try:
        return config.PromptFormat(parse_json(record.read_text(encoding="utf-8"))["prompt"])
    except (ValueError, KeyError, TypeError):
        formats = ", ".join(config.PromptFormat)
        raise ValueError(
            f'{record} does not say which prompt the model was trained on: give it "prompt", one '
            f"of {formats}"
        ) from None


def _load(run_config: config.Run, folder: Path, *, merged: bool) -> tuple[Any, Any]:
    from dollyllama.restore import choose_device, restore

    if not merged:
        return restore(run_config, folder)

    from dollyllama.model.load import load_merged, load_tokenizer

    tokenizer = load_tokenizer(str(folder), None)
    return load_merged(folder, choose_device(run_config.device)), tokenizer


def _greeting(url: str, model: str, key_name: str | None) -> str:
    """Where the server is, and a request to try."""
    key = f' -H "Authorization: Bearer ${key_name}"' if key_name else ""
    return (
        f"{model} answers at {url}/v1 until Ctrl-C. Try:\n"
        f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} "
        f'-d \'{{"messages": [{{"role": "user", "content": "Write a loop in Python."}}]}}\''
    )
