from __future__ import annotations

import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch

from dollyllama import config
from dollyllama.files import digest
from dollyllama.model import quantised
from dollyllama.model.adapter import attach_adapter
from dollyllama.model.precision import upcast
from tests.model.build import VOCABULARY, load, make_tokenizer, some_ids
from tests.training.build import equal, make_rows, run_fit, trainable

ROOT = Path(__file__).resolve().parents[2]
LAYERS = 14  # linear layers of the tiny model, without its head
WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, in which tiny models are kept too."""
    monkeypatch.setenv("DOLLYLLAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(quantised, "MIN_BYTES", 0)
    return tmp_path / "cache"


@pytest.fixture
def quantisations(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of the weights that bitsandbytes has quantised."""
    shapes: list[torch.Size] = []
    original = bitsandbytes.functional.quantize_4bit

    def count(weight: torch.Tensor, **settings: Any) -> Any:
        shapes.append(weight.shape)
        return original(weight, **settings)

    monkeypatch.setattr(bitsandbytes.functional, "quantize_4bit", count)
    return shapes


@pytest.fixture
def base(untied: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(untied, tmp_path / "base"))


def load_fresh(*arguments: Any, **more: Any) -> Any:
    """Quantised on the fly, whatever is kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantised, "MIN_BYTES", 2**62)
        return load(*arguments, **more)


def kept_folder(cache: Path) -> Path:
    (folder,) = (cache / "bases").iterdir()
    return folder


def parts_of(model: Any) -> dict[str, Any]:
    """Every number of a model: parameters, buffers, and states of quantisation field by field."""
    parts: dict[str, Any] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, parameter in model.named_parameters():
        parts[f"{name} class"] = (type(parameter), parameter.requires_grad)
        if type(parameter).__name__ != "Params4bit":
            continue
        for field in ("blocksize", "compress_statistics", "quant_type", "quant_storage"):
            parts[f"{name} {field}"] = getattr(parameter, field)
        state = parameter.quant_state
        for field in ("absmax", "code", "offset", "shape", "dtype", "blocksize", "quant_type"):
            parts[f"{name} state.{field}"] = getattr(state, field)
        for field in ("absmax", "code", "dtype", "blocksize") if state.nested else ():
            parts[f"{name} state2.{field}"] = getattr(state.state2, field)
        assert parameter.bnb_quantized
        assert parameter.module.quant_state is state
    return parts


def assert_same_bits(one: Any, other: Any) -> None:
    ours, theirs = parts_of(one), parts_of(other)
    assert ours.keys() == theirs.keys()
    for name, part in ours.items():
        if isinstance(part, torch.Tensor):
            assert part.dtype == theirs[name].dtype, name
            assert torch.equal(part, theirs[name]), name
        else:
            assert part == theirs[name], name


# --- the same model ------------------------------------------------------------------------------


@pytest.mark.parametrize("what", list(config.Upcast))
@pytest.mark.parametrize("kind", ["tied", "untied"])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("method", ["nf4", "fp4"])
def test_a_kept_base_is_the_quantised_one_bit_for_bit(
    method: str,
    double: bool,
    kind: str,
    what: config.Upcast,
    tokenizer: Any,
    quantisations: list[torch.Size],
    request: pytest.FixtureRequest,
) -> None:
    """With a row more for [PAD], as all tests here."""
    folder = request.getfixturevalue(kind)
    fresh = load_fresh(folder, tokenizer, method, double=double)
    assert len(quantisations) == LAYERS
    first = load(folder, tokenizer, method, double=double)
    assert len(quantisations) == 2 * LAYERS
    kept = load(folder, tokenizer, method, double=double)
    assert len(quantisations) == 2 * LAYERS
    for model in (fresh, first, kept):
        upcast(model, what)
    assert_same_bits(first, fresh)
    assert_same_bits(kept, fresh)
    assert (kept.get_input_embeddings().weight is kept.lm_head.weight) == (kind == "tied")
    with torch.no_grad():
        assert torch.equal(kept(some_ids()).logits, fresh(some_ids()).logits)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_other_dtypes_are_kept_apart(untied: Path, tokenizer: Any, dtype: str, cache: Path) -> None:
    load(untied, tokenizer, "nf4")
    for _ in range(2):
        kept = load(untied, tokenizer, "nf4", dtype=dtype)
        assert_same_bits(kept, load_fresh(untied, tokenizer, "nf4", dtype=dtype))
    assert len(list((cache / "bases").iterdir())) == 2


@pytest.mark.parametrize("variant", [config.LoraVariant.lora, config.LoraVariant.dora])
def test_training_on_a_kept_base_gives_the_same_adapter(
    untied: Path, tokenizer: Any, tmp_path: Path, cache: Path, variant: config.LoraVariant
) -> None:
    load(untied, tokenizer, "nf4")
    before = digest(kept_folder(cache) / WEIGHTS)
    adapters, logs = [], []
    for number, loader in enumerate((load, load_fresh)):
        model = loader(untied, tokenizer, "nf4")
        upcast(model, config.Upcast.norms)
        model = attach_adapter(
            model, r=2, alpha=4.0, dropout=0.1, variant=variant, targets=["all-linear"], seed=0
        )
        begun = trainable(model)
        _, logged = run_fit(
            model, make_rows([12, 9, 14, 7]), tmp_path / str(number), autocast=True, max_steps=2
        )
        assert not equal(begun, trainable(model))
        adapters.append(trainable(model))
        logs.append([(step, values["train/loss"]) for step, values in logged])
    assert equal(*adapters)
    assert logs[0] == logs[1]
    assert digest(kept_folder(cache) / WEIGHTS) == before


def described(model: Any) -> dict[str, Any]:
    generation = model.generation_config.to_dict()
    about = {"config": model.config.to_dict(), "generation": generation, "name": model.name_or_path}
    return about | {"config name": model.config._name_or_path, "mode": model.training}


@pytest.mark.parametrize("generation", [None, {"max_length": 77}, {"temperature": 0.5}])
def test_a_kept_base_has_the_settings_of_its_checkpoint(
    base: Path, tokenizer: Any, generation: dict[str, Any] | None, quantisations: list[torch.Size]
) -> None:
    """A temperature without sampling is a contradiction that transformers says it will not save."""
    path = base / "generation_config.json"
    path.unlink(missing_ok=True)
    if generation is not None:
        path.write_text(json.dumps({"bos_token_id": 0} | generation), encoding="utf-8")
    fresh = load_fresh(base, tokenizer, "nf4")
    load(base, tokenizer, "nf4")
    kept = load(base, tokenizer, "nf4")
    assert len(quantisations) == 2 * LAYERS
    assert described(kept) == described(fresh)
    assert kept.name_or_path == str(base)


# --- mapped --------------------------------------------------------------------------------------


def mapped_from(tensor: torch.Tensor) -> str:
    """The file that lies under a tensor's first byte, as the kernel says."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        addresses, *_, place = line.split(maxsplit=5)
        start, end = (int(each, 16) for each in addresses.split("-"))
        if start <= tensor.data_ptr() < end:
            return place.strip()
    raise AssertionError("no mapping holds the tensor")


def test_quantised_weights_are_mapped_from_the_first_load_on(
    untied: Path, tokenizer: Any, cache: Path
) -> None:
    for _ in range(2):
        model = load(untied, tokenizer, "nf4")
        linears = [each for each in model.parameters() if type(each).__name__ == "Params4bit"]
        files = {mapped_from(each.data) for each in linears}
        assert files == {str((kept_folder(cache) / WEIGHTS).resolve())}


def test_a_change_of_a_mapped_weight_reaches_nobody_else(
    untied: Path, tokenizer: Any, cache: Path
) -> None:
    model, other = (load(untied, tokenizer, "nf4") for _ in range(2))
    before = digest(kept_folder(cache) / WEIGHTS)
    model.model.layers[0].mlp.up_proj.weight.data.fill_(7)
    assert not (other.model.layers[0].mlp.up_proj.weight == 7).all()
    assert digest(kept_folder(cache) / WEIGHTS) == before


def test_the_model_that_was_written_is_freed(
    untied: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the process that quantises has the weights twice."""
    written = []
    original = quantised._save

    def save(model: Any, *arguments: Any) -> None:
        written.append(weakref.ref(model.model.layers[0].mlp.up_proj))
        original(model, *arguments)

    monkeypatch.setattr(quantised, "_save", save)
    gc.disable()
    try:
        model = load(untied, tokenizer, "nf4")
        assert [each() for each in written] == [None]
    finally:
        gc.enable()
    assert model.get_input_embeddings().num_embeddings == VOCABULARY + 1


# --- which is kept, and when ---------------------------------------------------------------------


def change_byte(path: Path) -> None:
    """Another byte at the end, with the times of the file as they were."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE: list[Callable[[Path], None]] = [change_byte, cut_short, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "digests.json"])
def test_a_damaged_base_is_made_again(
    untied: Path,
    tokenizer: Any,
    cache: Path,
    quantisations: list[torch.Size],
    name: str,
    damage: Callable[[Path], None],
) -> None:
    fresh = load_fresh(untied, tokenizer, "nf4")
    load(untied, tokenizer, "nf4")
    path = kept_folder(cache) / name
    before = digest(path)
    damage(path)
    quantisations.clear()
    assert_same_bits(load(untied, tokenizer, "nf4"), fresh)
    assert len(quantisations) == LAYERS
    assert digest(path) == before
    assert_same_bits(load(untied, tokenizer, "nf4"), fresh)
    assert len(quantisations) == LAYERS


def test_weights_in_use_outlive_a_repair(untied: Path, tokenizer: Any, cache: Path) -> None:
    model, fresh = load(untied, tokenizer, "nf4"), load_fresh(untied, tokenizer, "nf4")
    (kept_folder(cache) / "config.json").unlink()
    load(untied, tokenizer, "nf4")
    assert_same_bits(model, fresh)


def test_a_checkpoint_of_equal_size_and_time_is_another(
    base: Path, tokenizer: Any, cache: Path
) -> None:
    load(base, tokenizer, "nf4")
    change_byte(base / WEIGHTS)
    changed = load(base, tokenizer, "nf4")
    assert_same_bits(changed, load_fresh(base, tokenizer, "nf4"))
    assert len(list((cache / "bases").iterdir())) == 2


def test_a_checkpoint_that_moved_is_the_same(
    base: Path, tokenizer: Any, tmp_path: Path, quantisations: list[torch.Size]
) -> None:
    load(base, tokenizer, "nf4")
    moved = base.rename(tmp_path / "moved")
    model = load(moved, tokenizer, "nf4")
    assert len(quantisations) == LAYERS
    assert model.name_or_path == str(moved)


def test_other_versions_of_the_libraries_share_nothing(
    untied: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    load(untied, tokenizer, "nf4")
    versions = quantised.package_versions()
    for name in ("bitsandbytes", "transformers", "torch", "safetensors", "wandb"):
        other = versions | {name: "0.0"}
        monkeypatch.setattr(quantised, "package_versions", lambda other=other: other)
        load(untied, tokenizer, "nf4")
    assert len(list((cache / "bases").iterdir())) == 5


def test_a_checkpoint_is_read_for_its_digest_once(
    base: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def count(path: Path) -> str:
        read.append(path.name)
        return digest(path)

    monkeypatch.setattr(quantised, "digest", count)
    load(base, tokenizer, "nf4")
    assert read.count(WEIGHTS) == 2  # the checkpoint's and the kept ones
    read.clear()
    load(base, tokenizer, "nf4")
    assert read == []
    change_byte(base / WEIGHTS)
    load(base, tokenizer, "nf4")
    assert read.count(WEIGHTS) == 2


@pytest.mark.parametrize("method", ["none", "int8"])
def test_what_is_not_in_4_bits_is_not_kept(
    untied: Path, tokenizer: Any, method: str, cache: Path
) -> None:
    load(untied, tokenizer, method)
    assert not cache.exists()


def test_a_small_checkpoint_is_not_kept(
    untied: Path, tokenizer: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (untied / WEIGHTS).stat().st_size
    monkeypatch.setattr(quantised, "MIN_BYTES", size + 1)
    load(untied, tokenizer, "nf4")
    assert not cache.exists()
    monkeypatch.setattr(quantised, "MIN_BYTES", size)
    load(untied, tokenizer, "nf4")
    assert (kept_folder(cache) / WEIGHTS).is_file()


def test_a_damaged_checkpoint_is_refused_and_not_kept(
    base: Path, tokenizer: Any, cache: Path
) -> None:
    cut_short(base / WEIGHTS)
    with pytest.raises(ValueError, match=r"model\.path=.*cannot be read.*copy the folder again"):
        load(base, tokenizer, "nf4")
    assert not list(cache.rglob(WEIGHTS))


def test_a_checkpoint_that_changes_meanwhile_is_not_kept(
    base: Path, tokenizer: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = bitsandbytes.functional.quantize_4bit
    left = iter([True])

    def change(weight: torch.Tensor, **settings: Any) -> Any:
        if next(left, False):
            change_byte(base / WEIGHTS)
        return original(weight, **settings)

    monkeypatch.setattr(bitsandbytes.functional, "quantize_4bit", change)
    load(base, tokenizer, "nf4")
    assert not list(cache.rglob(WEIGHTS))


# --- where nothing can be written ----------------------------------------------------------------


def test_a_cache_that_cannot_be_had_costs_one_line(
    untied: Path, tokenizer: Any, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.touch()  # a file where the folder would be
    for _ in range(2):
        model = load(untied, tokenizer, "nf4")
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1
        assert "is not kept in" in said.err
        assert "DOLLYLLAMA_CACHE=FOLDER" in said.err
    assert_same_bits(model, load_fresh(untied, tokenizer, "nf4"))


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let no file grow beyond ``size`` bytes: what a full disk is to a writer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [10, 50_000])
def test_a_full_disk_costs_one_line_and_keeps_nothing(
    untied: Path, tokenizer: Any, cache: Path, size: int
) -> None:
    """Room for no file at all, or for all but the weights."""
    fresh = load_fresh(untied, tokenizer, "nf4")
    with room_for(size), pytest.MonkeyPatch.context() as patch:
        said: list[object] = []
        patch.setattr(quantised, "_say_not_kept", said.append)
        model = load(untied, tokenizer, "nf4")
    assert len(said) == 1
    assert "File too large" in str(said[0])
    assert_same_bits(model, fresh)
    assert list(kept_folder(cache).iterdir()) == []
    load(untied, tokenizer, "nf4")
    assert (kept_folder(cache) / "digests.json").is_file()


def test_a_base_that_would_load_as_another_is_not_kept(
    untied: Path, tokenizer: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = quantised._save

    def save(model: Any, *arguments: Any) -> None:
        weight = model.model.norm.weight
        weight.data.add_(1)
        original(model, *arguments)
        weight.data.sub_(1)

    monkeypatch.setattr(quantised, "_save", save)
    model = load(untied, tokenizer, "nf4")
    assert_same_bits(model, load_fresh(untied, tokenizer, "nf4"))
    assert list(kept_folder(cache).iterdir()) == []


# --- several processes ---------------------------------------------------------------------------


def test_a_killed_process_leaves_no_lock_and_no_half(
    untied: Path, tokenizer: Any, cache: Path
) -> None:
    load(untied, tokenizer, "nf4")
    folder = kept_folder(cache)
    (folder / "digests.json").unlink()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:  # quantises for ever, in its turn, and has left a part of a file

        def hang() -> None:
            (folder / WEIGHTS).write_bytes(b"half")
            os.write(writing, b"!")
            signal.pause()

        try:
            quantised._place_of = lambda *_: folder
            quantised.load_or_quantise(untied, {}, load=lambda _: None, quantise=hang)
        finally:
            os._exit(1)
    os.close(writing)
    try:
        assert os.read(reading, 1) == b"!"
        with pytest.raises(ValueError, match="busy"), quantised.locked(folder, "busy"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
    assert_same_bits(load(untied, tokenizer, "nf4"), load_fresh(untied, tokenizer, "nf4"))
    assert (folder / "digests.json").is_file()


LOAD_ONE = """
import sys, torch
from dollyllama import config
from dollyllama.model import quantised
from dollyllama.model.load import load_base, load_tokenizer
import bitsandbytes
from tests.model.build import quantization, some_ids
quantised.MIN_BYTES = 0
original, shapes = bitsandbytes.functional.quantize_4bit, []
def count(weight, **settings):
    shapes.append(weight.shape)
    return original(weight, **settings)
bitsandbytes.functional.quantize_4bit = count
tokenizer = load_tokenizer("someone/tiny", "main")
print("ready", flush=True)
sys.stdin.readline()
model = load_base(
    "someone/tiny", "main", pickled_weights=False, dtype=config.Dtype.bfloat16,
    quantization=quantization("nf4"),
    device=torch.device("cpu"), tokenizer=tokenizer,
)
with torch.no_grad():
    print(len(shapes), model.name_or_path, model(some_ids()).logits.double().sum().item())
"""


@pytest.mark.slow
def test_of_several_processes_one_quantises_a_base_of_the_hub(untied: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--someone--tiny" / "snapshots" / ("0" * 40)
    shutil.copytree(untied, snapshot)
    make_tokenizer().save_pretrained(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    there = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", LOAD_ONE],
            cwd=ROOT,
            env=os.environ | there,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    ends = [worker.communicate("go\n") for worker in workers]
    assert [error for _, error in ends] == [""] * 2
    counts, names, sums = zip(*(line.split() for line, _ in ends), strict=True)
    assert sorted(counts) == ["0", str(LAYERS)]
    assert set(names) == {"someone/tiny"}
    assert len(set(sums)) == 1
