"""``serve``: from the command line to an answer and a clean end, and what it refuses to begin."""

from __future__ import annotations

import importlib.util
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from dollyllama import embedded
from dollyllama.__main__ import main


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``serve FOLDER`` in a process of its own, killed if it is still there at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dollyllama", "serve", str(folder), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()


@pytest.mark.parametrize("merged", [False, True])
def test_a_run_and_a_merged_model_are_served_until_ctrl_c(
    merged: bool, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOOR_KEY", "sesame-5f2a")
    folder = small_run
    if merged:
        folder = tmp_path / "merged"
        shutil.copytree(embedded.MODEL, folder)
    options = ["--port", "0", "--api-key-env", "DOOR_KEY", "--max-new-tokens", "9"]
    with serving(folder, "decoding=contrastive", *options) as process:
        assert process.stdout is not None
        line, example = process.stdout.readline(), process.stdout.readline()
        found = re.fullmatch(rf"{folder.name} answers at (http://127\.0\.0\.1:\d+/v1) .*\n", line)
        assert found
        client = openai.OpenAI(base_url=found[1], api_key="sesame-5f2a", max_retries=0)
        messages: Any = [{"role": "user", "content": "Name a bird."}]
        whole = client.chat.completions.create(model=folder.name, messages=messages)
        assert whole.usage is not None
        assert 1 <= whole.usage.completion_tokens <= 9
        with pytest.raises(openai.UnprocessableEntityError, match="at most 9 tokens"):
            client.chat.completions.create(model=folder.name, messages=messages, max_tokens=10)
        client.close()
        process.send_signal(signal.SIGINT)
        said, complained = process.communicate(timeout=60)
    assert process.returncode == 130
    assert complained == "interrupted\n"
    assert '"Authorization: Bearer $DOOR_KEY"' in example
    assert "sesame" not in line + example + said + complained


@pytest.mark.slow
def test_a_second_ctrl_c_cuts_off_what_is_being_answered(small_run: Path) -> None:
    # Drawn hot, so that no answer ends by itself.
    hot = ("decoding=temperature", "decoding.temperature=2", "decoding.max_new_tokens=450")
    with serving(small_run, *hot, "--port", "0") as process:
        assert process.stdout is not None
        found = re.search(r"http://\S+/v1", process.stdout.readline())
        assert found
        client = openai.OpenAI(base_url=found[0], api_key="none", max_retries=0)
        pieces = iter(client.completions.create(model=small_run.name, prompt="a", stream=True))
        next(pieces)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        _, complained = process.communicate(timeout=60)
    assert process.returncode == 130
    assert complained == "interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "--api-key-env NAME"),
        (["--host", "::"], "--api-key-env NAME"),
        (["--host", "example.org"], "--api-key-env NAME"),
        (["--api-key-env", "ABSENT_KEY"], "ABSENT_KEY: that environment variable is empty"),
        (["--api-key-env", "ODD_KEY"], "no printable ASCII"),
        (["--max-batch", "0"], "--max-batch must be at least 1, not 0"),
        (["--max-queue", "-1"], "--max-queue must be at least 1, not -1"),
        (["--port", "65536"], "--port must be in [0, 65536)"),
        (["--timeout", "nan"], "--timeout must be a number of seconds above 0"),
        (["decoding=gready"], "did you mean decoding=greedy?"),
        (["lora.r=3"], "cannot be changed"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(
    small_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.setenv("ODD_KEY", "a\u2028b")
    monkeypatch.delenv("ABSENT_KEY", raising=False)
    assert main(["serve", str(small_run), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_a_port_that_is_taken_is_refused_before_the_model_is_loaded(
    small_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dollyllama.verbs.serve._load", lambda *_, **__: pytest.fail("was loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(small_run), "--port", port]) == 2
    assert f"--host 127.0.0.1 --port {port} cannot be had: Address" in capsys.readouterr().err


def test_without_the_extra_it_is_said_how_to_get_it(
    small_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name)
    )
    assert main(["serve", str(small_run)]) == 2
    error = capsys.readouterr().err
    assert error == "error: serve needs uvicorn: pip install -e '.[serve]'\n"


def test_a_merged_model_has_no_training_to_override(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert main(["serve", str(tmp_path), "lora.r=3"]) == 2
    assert "cannot be changed for a merged model" in capsys.readouterr().err
    assert main(["serve", str(tmp_path), "--port", "0"]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path) in error
    assert len(error.splitlines()) == 1
