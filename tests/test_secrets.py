"""Keys and tokens of the environment are in nothing that any command writes, prints or is called.

Every command is a process of its own, with secrets planted in its environment and with home,
temporary folder, cache and working folder inside the test's. Then every byte below these is
searched, what was printed, and the command lines and titles of all processes, sampled meanwhile.
A process's own environment holds them, as the user gave them to it.
"""

from __future__ import annotations

import base64
import gzip
import html
import http.server
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from tests.wandb_log import read_log

ROOT = Path(__file__).resolve().parents[1]

PLANTED = {
    "HF_TOKEN": "hf_PlantedForATestXyzAbcDef",
    "WANDB_API_KEY": "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c",
    "OPENAI_API_KEY": "sk-planted-ForATest-0123456789",
    "AWS_SECRET_ACCESS_KEY": "wJalrPLANTED/K7MDENG+bPxRfiCYplanted",
    "DOLLYLLAMA_API_KEY": "planted serving-key vK29 of xqZ",
    "MY_DB_PASSWORD": "planted-and-of-no-known-shape",
    "ODD_PASSWORD": "pl\"an't\\ed$(x)`{y}` <&>%41=ü\t;#|z",
    "CALLERS": "planted-callers-QzXw71-nJkP",
    "LONG_PRIVATE_KEY": "-----BEGIN PLANTED KEY-----\nMIIplantedQIBAAKCAQEA\n"
    "plantedSecondLine/9+x=\n-----END PLANTED KEY-----\n",
}
#: So much of a line of a secret, at its beginning or end, is a leak as well.
_TELLING = 14
MARK = "DOLLYLLAMA_SECRETS_TEST"

# --- the search ---------------------------------------------------------------------------------


def forms(secret: str) -> set[bytes]:
    """The secret and its parts as they may stand in a file."""
    whole = {secret, secret.strip(), " ".join(secret.split())}
    lines = {line for line in secret.splitlines() if len(line) >= _TELLING and "---" not in line}
    ends = {part[:_TELLING] for part in whole | lines} | {part[-_TELLING:] for part in whole}
    ends -= {part for part in ends if "---" in part}
    found: set[bytes] = set()
    for part in whole | lines | ends:
        raw = part.encode()
        found |= {raw, raw.hex().encode(), part.encode("utf-16-le")}
        for written in (
            json.dumps(part)[1:-1],
            json.dumps(part, ensure_ascii=False)[1:-1],
            json.dumps(json.dumps(part))[1:-1][2:-2],
            repr(part)[1:-1],
            html.escape(part),
            html.escape(part, quote=False),
            shlex.quote(part).strip("'"),
            urllib.parse.quote(part),
            urllib.parse.quote(part, safe=""),
            urllib.parse.quote_plus(part),
        ):
            found.add(written.encode())
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            for before in range(3):  # what stands before it moves it within base64's triples
                text = encode(b"\0" * before + raw)
                found.add(text[-(-before * 8 // 6) : len(raw) * 8 // 6 - 1])
    return {form for form in found if len(form) >= 12}


FORMS = {name: forms(secret) for name, secret in PLANTED.items()}


def search(content: bytes) -> set[str]:
    """The names of the variables whose secret is in there."""
    return {name for name, all_forms in FORMS.items() if any(each in content for each in all_forms)}


def views(path: Path) -> Iterator[bytes]:
    """A file as it is, and what it holds packed."""
    content = path.read_bytes()
    yield str(path).encode()
    yield content
    if path.suffix == ".wandb":
        yield from (record.SerializeToString() for record in read_log(path))
    if content[:2] == b"\x1f\x8b":
        yield gzip.decompress(content)
    with suppress(zlib.error):
        yield zlib.decompress(content)


def leaks_in(folder: Path) -> dict[str, set[str]]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            names = set().union(*map(search, views(path)))
        else:
            names = search(str(path).encode())
        if names:
            found[str(path.relative_to(folder))] = names
    return found


# --- running ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Watch:
    """Command lines and titles of every process of the test, as long as it is open."""

    seen: set[bytes] = field(default_factory=set)
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._sample)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _sample(self) -> None:
        while not self._over.wait(0.1):
            for pid in psutil.pids():
                with suppress(OSError):
                    if MARK.encode() in Path(f"/proc/{pid}/environ").read_bytes():
                        self.see(pid)

    def see(self, pid: int) -> None:
        place = Path(f"/proc/{pid}")
        for path in (place / "cmdline", place / "comm", *place.glob("task/*/comm")):
            with suppress(OSError):
                self.seen.add(path.read_bytes())


class Place:
    """A folder to work in, with all that a process may write to inside of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[tuple[str, bytes]] = []
        for name in ("home", "tmp", "work", "path"):
            (folder / name).mkdir()
        (folder / "path" / "sitecustomize.py").write_text(_FAULT, encoding="utf-8")
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("WANDB_", "HF_", "HYDRA_", "PYTEST_"))
        } | {
            **PLANTED,
            MARK: "1",
            "HOME": str(folder / "home"),
            "NETRC": str(folder / "home" / ".netrc"),
            "XDG_CACHE_HOME": str(folder / "home" / ".cache"),
            "XDG_CONFIG_HOME": str(folder / "home" / ".config"),
            "TMPDIR": str(folder / "tmp"),
            "DOLLYLLAMA_CACHE": str(folder / "cache"),
            "PYTHONPATH": f"{folder / 'path'}:{ROOT}",
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def start(self, command: list[str], **more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=self.folder / "work",
            env=self.environment | more,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *command: str, status: int = 0, **more: str) -> None:
        """Run it to its end; ``status`` is how that has to be."""
        with self.start(list(command), **more) as process:
            out, err = process.communicate(timeout=600)
        self.said.append((" ".join(command), out + err))
        assert process.returncode == status, (command, out.decode(), err.decode())

    def leaks(self, watch: Watch) -> dict[str, set[str]]:
        found = leaks_in(self.folder)
        found |= {f"said by {name}": leaked for name, said in self.said if (leaked := search(said))}
        found |= {f"called {line!r}": leaked for line in watch.seen if (leaked := search(line))}
        return found


#: A secret under any other name is known to nobody but what is told to use it.
_KNOWN = sorted(PLANTED.keys() - {"CALLERS"})

#: Put on the path of every process: where a Llama computes, a library fails and quotes all secrets.
_FAULT = f"""
import os
if os.environ.get("FAULT"):
    from transformers.models.llama.modeling_llama import LlamaForCausalLM
    def forward(self, *args, **more):
        raise RuntimeError(" and ".join(os.environ[name] for name in {_KNOWN}))
    LlamaForCausalLM.forward = forward
"""


class Echo(http.server.BaseHTTPRequestHandler):
    """Stands for W&B: answers with an error that repeats the request, keys included."""

    def do_POST(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = f"no: {self.headers}".encode() + asked
        if authorization := self.headers.get("Authorization", "").partition(" ")[2]:
            with suppress(ValueError):
                answer += base64.b64decode(authorization)
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def echoing(status: int) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        server.status = status  # type: ignore[attr-defined]
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


SMALL = (
    *("device=cpu", "data.max_rows=32", "data.held_out=0.02", "trainer=smoke"),
    *("trainer.max_steps=1", "evaluation.loss_examples=2", "evaluation.generate_examples=1"),
    *("evaluation.batch_size=2", "decoding.max_new_tokens=4"),
)

TRAIN = str(ROOT / "train.py")
VERB = ("-m", "dollyllama")


def refused(place: Place) -> None:
    """What is refused before anything is loaded, and would quote what it refuses."""
    for name in _KNOWN:
        place.run(TRAIN, f"lora.r=${{oc.env:{name}}}", status=2)
    for key in ("lora.r", "tracking.project"):
        planted = f"{key}=${{oc.env:LONG_PRIVATE_KEY}}"
        place.run(TRAIN, planted, status=2)
        place.run(TRAIN, planted, status=1, HYDRA_FULL_ERROR="1")
    place.run(TRAIN, "--cfg", "job", "--resolve", "tracking.project=${oc.env:ODD_PASSWORD}")
    place.run(*VERB, "plan", "lora.r=${oc.env:MY_DB_PASSWORD}", status=2)
    typed(place, TRAIN, f"tracking.project={PLANTED['ODD_PASSWORD']}")
    typed(place, TRAIN, f"tracking.project={PLANTED['HF_TOKEN']}")
    typed(place, *VERB, "show", PLANTED["MY_DB_PASSWORD"])
    axis = f"tracking.project={PLANTED['MY_DB_PASSWORD']},x"
    typed(place, TRAIN, "--multirun", axis, "tracking=files", *SMALL)


def typed(place: Place, *command: str) -> None:
    """A command that the user gives with the secret in it: its own command line holds that."""
    del place.environment[MARK]
    place.run(*command, status=2)
    place.environment[MARK] = "1"


def trained(place: Place) -> None:
    """A run that finishes, and one in which a library fails, both with W&B's own package."""
    offline = (*SMALL, "tracking=wandb_offline", "tracking.artifacts=true")
    place.run(TRAIN, *offline, "hydra.run.dir=run")
    place.run(TRAIN, *offline, "hydra.run.dir=failed", status=1, FAULT="1")
    work = place.folder / "work"
    assert list(work.glob("run/wandb/offline-run-*/*.wandb"))
    assert json.loads((work / "failed" / "result.json").read_text(encoding="utf-8"))["error"]


def all_else(place: Place) -> None:
    files = (*SMALL, "tracking=files")
    place.run(TRAIN, *files, "hydra.run.dir=of_files")
    full = {"FAULT": "1", "HYDRA_FULL_ERROR": "1"}
    place.run(TRAIN, *files, "hydra.run.dir=failed_in_full", status=1, **full)
    axis = ("--multirun", "lora.r=2,4")
    place.run(TRAIN, *axis, *SMALL, "tracking=wandb_offline", "hydra.sweep.dir=sweep")
    place.run(TRAIN, *axis, *files, "seed=1", "hydra.sweep.dir=failed_sweep", status=1, FAULT="1")
    assert list(place.folder.glob("work/failed_sweep/*/log.txt"))
    place.run(*VERB, "prepare", "data.max_rows=32", "--html", "--output", "prepared")
    place.run(*VERB, "show", "run")
    place.run(*VERB, "plan", "run")
    place.run(*VERB, "report", "sweep", "failed_sweep", "--output", "report")
    place.run(*VERB, "dashboard", "sweep")
    place.run(*VERB, "generate", "run", "--instruction", "Say it.")
    place.run(*VERB, "generate", "run", "--instruction", "Say it.", status=1, FAULT="1")
    place.run(*VERB, "evaluate", "run", "evaluation.generate_examples=1")
    merging = ("--rows", "2", "--publish-anyway")
    place.run(*VERB, "merge", "run", "--output", "merged", *merging)
    place.run(*VERB, "export", "run", "--format", "mlflow", "--output", "exported", *merging)
    few = ("--merged", "merged", "--batch", "1", "--context", "16", "--tokens", "2")
    place.run(*VERB, "latency", "run", *few)
    serve(place, "CALLERS")
    serve(place, "DOLLYLLAMA_API_KEY", **full)
    for status in (500, 401, 200):
        with echoing(status) as url:
            online = {"WANDB_MODE": "online", "WANDB_BASE_URL": url}
            unmeasured = (*SMALL, "tracking=wandb", "evaluation=none")
            place.run(TRAIN, *unmeasured, f"hydra.run.dir=online_{status}", **online)
    with echoing(401) as url:
        online = {"WANDB_MODE": "online", "WANDB_BASE_URL": url}
        place.run(*VERB, "dashboard", "sweep", "--publish", status=2, **online)


def serve(place: Place, key: str, **more: str) -> None:
    """Ask a server with its key, with none, and with another secret in the key's place."""
    command = [*VERB, "serve", "run", "--port", "0", "--api-key-env", key]
    with place.start(command, **more) as server:
        assert server.stdout is not None
        if not (greeting := server.stdout.readline()):
            pytest.fail(server.communicate()[1].decode())
        url = greeting.split(b" answers at ")[1].split()[0].decode()
        statuses = []
        for given in (PLANTED[key], None, PLANTED["HF_TOKEN"]):
            response = httpx.post(
                f"{url}/completions",
                json={"prompt": "Say it.", "max_tokens": 2},
                headers={} if given is None else {"Authorization": f"Bearer {given}"},
                timeout=120,
            )
            statuses.append(response.status_code)
            place.said.append((f"serve, {response.status_code}", response.content))
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=120)
    place.said.append(("serve", greeting + out + err))
    assert statuses == [500 if more else 200, 401, 401], (out.decode(), err.decode())


# --- controls -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANTED)
def test_the_search_finds_a_secret_in_every_form(name: str, tmp_path: Path) -> None:
    secret = PLANTED[name]
    line = next(each for each in secret.splitlines() if "---" not in each)
    content = {
        "plain": secret.encode(),
        "a.json": json.dumps({"a": [secret]}).encode(),
        "twice.json": json.dumps({"a": json.dumps([secret])}).encode(),
        "a.html": html.escape(f"<p>{secret}").encode(),
        "url": urllib.parse.urlencode({"a": secret}).encode(),
        "cut_basic": base64.b64encode(f"api:{line}".encode())[:40],
        "basic": base64.b64encode(f"api:{secret}".encode()),
        "a.gz": gzip.compress(b"x" * 99 + secret.encode()),
        "a.z": zlib.compress(secret.encode()),
        "cut": f"{line[:20]}…".encode(),
    }
    for file, each in content.items():
        (tmp_path / file).write_bytes(each)
    assert leaks_in(tmp_path) == {file: {name} for file in content}


def test_the_search_sees_a_command_line() -> None:
    watch = Watch()
    command = [sys.executable, "-c", "print(input(), flush=True); input()", PLANTED["ODD_PASSWORD"]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"it runs\n")
        process.stdin.flush()
        process.stdout.read(1)  # until then it may have no command line yet
        watch.see(process.pid)
        process.communicate(b"\n")
    assert any("ODD_PASSWORD" in search(line) for line in watch.seen)


@pytest.mark.usefixtures("nobody_is_logged_in")
def test_the_search_reads_what_wandb_writes(tmp_path: Path) -> None:
    """Its log is cut into blocks of 32 KiB, also in the midst of a value."""
    secret = PLANTED["MY_DB_PASSWORD"]
    code = (
        "import sys, wandb\n"
        "noted = {f'key{number:04}': sys.stdin.readline() for number in range(3000)}\n"
        "wandb.init(mode='offline', dir=sys.argv[1], config=noted).finish()\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        input=f"{secret}\n".encode() * 3000,
        capture_output=True,
        check=True,
        timeout=120,
    )
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    decoded = b"".join(record.SerializeToString() for record in read_log(log))
    assert decoded.count(secret.encode()) > log.read_bytes().count(secret.encode())
    assert "MY_DB_PASSWORD" in leaks_in(tmp_path)[str(log.relative_to(tmp_path))]


# --- the claim ----------------------------------------------------------------------------------


def test_no_secret_is_in_what_a_run_writes_and_prints(tmp_path: Path) -> None:
    place, watch = Place(tmp_path), Watch()
    with watch.watching():
        place.run(TRAIN, "lora.r=${oc.env:LONG_PRIVATE_KEY}", status=2)
        typed(place, TRAIN, f"tracking.project={PLANTED['ODD_PASSWORD']}")
        trained(place)
    assert watch.seen
    assert place.leaks(watch) == {}


@pytest.mark.slow
def test_no_secret_is_in_what_any_command_writes_and_prints(tmp_path: Path) -> None:
    place, watch = Place(tmp_path), Watch()
    with watch.watching():
        refused(place)
        trained(place)
        all_else(place)
    assert watch.seen
    assert place.leaks(watch) == {}
