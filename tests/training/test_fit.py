from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dollyllama.config import Batching, OptimizerName, Schedule, ScheduleName
from dollyllama.fast.projections import project
from dollyllama.training.budget import make_plan
from dollyllama.training.fit import Diverged, FitResult, Pruned, fit
from dollyllama.training.profile import count_flops
from tests.training.build import (
    VOCABULARY,
    equal,
    make_model,
    make_optimizer,
    make_rows,
    make_trainer,
    run_fit,
    trainable,
)

ROWS = make_rows([5, 31, 9, 24, 6, 17, 40, 12])


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_training_lowers_the_loss_of_the_rows(tmp_path: Path) -> None:
    result, logged = run_fit(make_model(), ROWS, tmp_path, epochs=8, batch_size=4)
    assert result.loss == logged[-1][1]["train/loss"]
    assert logged[-1][1]["train/loss"] < 0.6 * logged[0][1]["train/loss"]


def test_the_base_stays_as_it_is(tmp_path: Path) -> None:
    model = make_model(dropout=0.1)
    before = {name: each.clone() for name, each in model.named_parameters()}
    attributes = set(model.__dict__)
    configured = model.config.to_dict(), model.config._attn_implementation
    run_fit(model, ROWS, tmp_path, autocast=True)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad
    assert (model.config.to_dict(), model.config._attn_implementation) == configured
    assert set(model.__dict__) == attributes
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not model.training


def test_a_run_without_checkpoints_leaves_no_file(tmp_path: Path) -> None:
    run_fit(make_model(), ROWS, tmp_path, autocast=True)
    assert names(tmp_path) == []


def test_nothing_is_printed_and_no_warning_raised(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    model = make_model()
    recwarn.clear()
    run_fit(model, ROWS, tmp_path, autocast=True, activation_checkpointing=True)
    run_fit(model, ROWS, tmp_path, batching=Batching.packed)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert [str(each.message) for each in recwarn] == []


def test_max_steps_zero_changes_nothing(tmp_path: Path) -> None:
    model = make_model()
    before = trainable(model)
    result, logged = run_fit(model, ROWS, tmp_path, max_steps=0)
    assert equal(trainable(model), before)
    assert logged == []
    assert dataclasses.asdict(result) | {"peak_memory_mib": None} == {
        "steps": 0,
        "tokens": 0,
        "supervised_tokens": 0,
        "seconds": 0.0,
        "tokens_per_second": 0.0,
        "peak_memory_mib": None,
        "loss": None,
        "interrupted": False,
    }
    json.dumps(dataclasses.asdict(result), allow_nan=False)


def test_tokens_are_those_of_the_rows(tmp_path: Path) -> None:
    result, _ = run_fit(make_model(), ROWS, tmp_path, epochs=2, batch_size=4)
    assert result.steps == 4
    assert result.tokens == 2 * sum(len(row.ids) for row in ROWS)
    assert result.supervised_tokens == 2 * sum(row.supervised for row in ROWS)
    assert result.tokens_per_second == pytest.approx(result.tokens / result.seconds)
    assert result.peak_memory_mib > 100


def test_the_log_says_what_the_steps_since_the_last_line_did(tmp_path: Path) -> None:
    _, every = run_fit(make_model(), ROWS, tmp_path, epochs=1, batch_size=1)
    _, third = run_fit(make_model(), ROWS, tmp_path, epochs=1, batch_size=1, logging_steps=3)
    assert [step for step, _ in every] == list(range(1, 9))
    assert [step for step, _ in third] == [3, 6, 8]
    assert third[0][1].keys() == {
        "train/loss",
        "train/loss/sql",
        "train/loss/maths",
        "train/lr",
        "train/grad_norm",
        "train/epoch",
        "train/tokens_per_second",
        "memory/peak_mib",
    }
    assert [values["train/epoch"] for _, values in third] == [3 / 8, 6 / 8, 1]
    assert third[2][1]["train/grad_norm"] == every[7][1]["train/grad_norm"]
    assert third[2][1]["train/lr"] == every[7][1]["train/lr"] == pytest.approx(1e-2 / 8)
    # The loss of three steps of one row each is the mean over their tokens, by source too.
    plan = make_plan([len(row.ids) for row in ROWS], make_trainer(epochs=1, batch_size=1), seed=0)
    for source in (None, "sql", "maths"):
        total, count = 0.0, 0
        for (row,), (_, values) in zip(plan.batches[:3], every[:3], strict=True):
            if source in (None, ROWS[row].example.source):
                tokens = ROWS[row].supervised
                total, count = total + values["train/loss"] * tokens, count + tokens
        key = "train/loss" if source is None else f"train/loss/{source}"
        assert third[0][1][key] == pytest.approx(total / count)


def test_a_long_gradient_is_clipped_and_logged_as_it_was(tmp_path: Path) -> None:
    def change(max_grad_norm: float | None) -> tuple[float, float]:
        model = make_model()
        before = trainable(model)
        sgd = make_optimizer(OptimizerName.sgd, lr=1.0, momentum=0.0)
        _, logged = run_fit(
            model, ROWS, tmp_path, optimizer=sgd, max_steps=1, max_grad_norm=max_grad_norm
        )
        after = trainable(model)
        squares = sum(float((after[name] - before[name]).square().sum()) for name in before)
        return math.sqrt(squares), logged[0][1]["train/grad_norm"]

    length, norm = change(None)
    assert length == pytest.approx(norm, rel=1e-4)
    clipped, same_norm = change(0.25)
    assert clipped == pytest.approx(0.25, rel=1e-3)
    assert same_norm == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize(
    ("autocast", "tiles", "expected"),
    [(False, True, torch.float32), (True, True, torch.bfloat16), (True, False, torch.float32)],
)
def test_autocast_is_bfloat16_where_it_is_asked_for_and_fast(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autocast: bool,
    tiles: bool,
    expected: torch.dtype,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    model = make_model()
    seen = set()
    down = model.base_model.model.model.layers[0].mlp.gate_proj
    down.register_forward_hook(
        lambda module, inputs, output: seen.add((output.requires_grad, output.dtype))
    )
    run_fit(model, ROWS, tmp_path, autocast=autocast, max_steps=1)
    assert {dtype for training, dtype in seen if training} == {expected}
    seen.clear()
    model(input_ids=torch.tensor([[1, 2]]))
    assert seen == {(True, torch.float32)}


@pytest.mark.parametrize("batching", Batching)
def test_two_runs_give_the_same_bits_and_another_seed_other_ones(
    tmp_path: Path, batching: Batching
) -> None:
    def train(seed: int) -> dict[str, torch.Tensor]:
        model = make_model(dropout=0.2)
        torch.rand(seed + 3)  # what was drawn before must not matter
        run_fit(model, ROWS, tmp_path, seed=seed, batching=batching, autocast=True, max_steps=3)
        return trainable(model)

    first = train(0)
    assert equal(train(0), first)
    assert not equal(train(1), first)


class Killed(BaseException):
    """Stands for a run that ends in the midst of a step, without a chance to clean up."""


def killed_at(step: int) -> Callable[[int, dict[str, float]], None]:
    def on_log(at: int, values: dict[str, float]) -> None:
        if at == step:
            raise Killed

    return on_log


@pytest.mark.parametrize(
    ("batching", "optimizer"),
    [
        (Batching.length_grouped, OptimizerName.adamw),
        (Batching.packed, OptimizerName.adamw_8bit),
        (Batching.padded, OptimizerName.adafactor),
    ],
)
def test_a_resumed_run_ends_with_the_bits_of_the_uninterrupted_one(
    tmp_path: Path, batching: Batching, optimizer: OptimizerName
) -> None:
    settings: dict[str, Any] = {
        "optimizer": make_optimizer(optimizer),
        "batching": batching,
        "epochs": 2.5,
        "accumulation": 2,
        "checkpoint_steps": 2,
        "keep_checkpoints": 1,
    }

    def model() -> Any:
        # Wide enough for matrices of more than 4,096 elements, whose state is in 8 bits.
        return make_model(dropout=0.2, intermediate_size=640)

    whole = model()
    expected, logged = run_fit(whole, ROWS, tmp_path / "whole", **settings)
    assert expected.steps >= 4
    with pytest.raises(Killed):
        run_fit(model(), ROWS, tmp_path / "killed", on_log=killed_at(3), **settings)
    resumed = model()
    with torch.no_grad():  # what the model holds before is not what counts
        for parameter in trainable(resumed).values():
            parameter.zero_()
    found, again = run_fit(resumed, ROWS, tmp_path / "killed", resume=True, **settings)
    assert equal(trainable(resumed), trainable(whole))
    steady = ("train/loss", "train/lr", "train/grad_norm", "train/epoch")
    for (step, values), (step_again, values_again) in zip(logged[2:], again, strict=True):
        assert step == step_again
        assert [values[name] for name in steady] == [values_again[name] for name in steady]
    assert (found.steps, found.tokens, found.supervised_tokens, found.loss) == (
        expected.steps,
        expected.tokens,
        expected.supervised_tokens,
        expected.loss,
    )


def test_resume_without_a_checkpoint_starts_anew(tmp_path: Path) -> None:
    one, other = make_model(), make_model()
    run_fit(one, ROWS, tmp_path / "one", resume=False)
    run_fit(other, ROWS, tmp_path / "other", resume=True)
    assert equal(trainable(one), trainable(other))


def test_resuming_a_finished_run_gives_its_result_without_training(tmp_path: Path) -> None:
    model = make_model()
    settings = {"checkpoint_steps": 3, "keep_checkpoints": 1, "max_steps": 4}
    result, _ = run_fit(model, ROWS, tmp_path, **settings)
    assert names(tmp_path / "checkpoints") == [
        "checkpoint-4",
        "checkpoint-4/digests.json",
        "checkpoint-4/state.pt",
    ]
    other = make_model(seed=1)
    again, logged = run_fit(other, ROWS, tmp_path, resume=True, **settings)
    assert logged == []
    assert equal(trainable(other), trainable(model))
    assert (again.steps, again.tokens, again.loss) == (result.steps, result.tokens, result.loss)
    assert again.seconds == pytest.approx(result.seconds, abs=1)  # less the last checkpoint's


def test_a_new_run_does_not_write_over_checkpoints(tmp_path: Path) -> None:
    settings = {"checkpoint_steps": 1, "keep_checkpoints": 1, "max_steps": 1}
    run_fit(make_model(), ROWS, tmp_path, **settings)
    with pytest.raises(ValueError, match=r"holds checkpoints of an earlier run: resume it with"):
        run_fit(make_model(), ROWS, tmp_path, **settings)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    settings = {"checkpoint_steps": 1, "keep_checkpoints": 1, "max_steps": 2}
    run_fit(make_model(), ROWS, tmp_path, **settings)
    batches = r"the batches \(trainer, seed\)"
    for name, changes in (
        (r"optimizer\.lr", {"optimizer": make_optimizer(lr=0.5)}),
        (batches, {"batch_size": 3}),
        (batches, {"seed": 1}),
    ):
        with pytest.raises(ValueError, match=f"was written under another config: {name} differ;"):
            run_fit(make_model(), ROWS, tmp_path, resume=True, **(settings | changes))


def test_a_checkpoint_of_other_rows_or_another_adapter_is_refused(tmp_path: Path) -> None:
    settings = {"checkpoint_steps": 1, "keep_checkpoints": 1, "max_steps": 2}
    run_fit(make_model(), ROWS, tmp_path, **settings)
    other = [dataclasses.replace(row, ids=[*row.ids[:-1], row.ids[-1] + 1]) for row in ROWS]
    with pytest.raises(ValueError, match="config: the rows differ"):
        run_fit(make_model(), other, tmp_path, resume=True, **settings)
    model = make_model()
    next(each for each in model.parameters() if each.requires_grad).requires_grad = False
    with pytest.raises(ValueError, match=r"config: the adapter's parameters \(lora\) differ"):
        run_fit(model, ROWS, tmp_path, resume=True, **settings)


def signalled_at(step: int, number: int) -> Callable[[int, dict[str, float]], None]:
    def on_log(at: int, values: dict[str, float]) -> None:
        if at == step:
            os.kill(os.getpid(), number)

    return on_log


def test_a_signal_in_the_last_step_stops_what_follows_and_nothing_is_trained_again(
    tmp_path: Path,
) -> None:
    whole, stopped, resumed = (make_model(dropout=0.2) for _ in range(3))
    run_fit(whole, ROWS, tmp_path / "whole", max_steps=3)
    folder = tmp_path / "stopped"
    for at in (2, 3):  # while the last step is taken, and when it is done
        shutil.rmtree(folder, ignore_errors=True)
        result, _ = run_fit(
            stopped, ROWS, folder, max_steps=3, on_log=signalled_at(at, signal.SIGTERM)
        )
        assert (result.steps, result.interrupted) == (3, True)
        assert names(folder / "checkpoints")[0] == "checkpoint-3"
        stopped = make_model(dropout=0.2)
    result, logged = run_fit(resumed, ROWS, folder, max_steps=3, resume=True)
    assert (result.steps, result.interrupted, logged) == (3, False, [])
    assert equal(trainable(resumed), trainable(whole))


@pytest.mark.parametrize("step", [1, 3])
def test_a_signal_in_the_pilot_ends_the_run_without_a_budget(tmp_path: Path, step: int) -> None:
    passes = itertools.count(1)
    model = make_model()
    model.register_forward_pre_hook(
        lambda *_: os.kill(os.getpid(), signal.SIGTERM) if next(passes) == step else None
    )
    with pytest.raises(KeyboardInterrupt):
        run_fit(model, ROWS, tmp_path, max_seconds=5.0, batch_size=1)
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_a_step_and_it_can_be_resumed(
    tmp_path: Path, number: int
) -> None:
    whole, stopped, resumed = (make_model(dropout=0.2) for _ in range(3))
    run_fit(whole, ROWS, tmp_path / "whole", max_steps=5)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    folder = tmp_path / "stopped"
    # The signal comes after the second step, so the third is the one that is finished.
    result, logged = run_fit(stopped, ROWS, folder, max_steps=5, on_log=signalled_at(2, number))
    assert (result.steps, result.interrupted) == (3, True)
    assert [step for step, _ in logged] == [1, 2, 3]
    assert names(folder / "checkpoints") == [
        "checkpoint-3",
        "checkpoint-3/digests.json",
        "checkpoint-3/state.pt",
    ]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    result, _ = run_fit(resumed, ROWS, folder, max_steps=5, resume=True)
    assert (result.steps, result.interrupted) == (5, False)
    assert equal(trainable(resumed), trainable(whole))


def test_a_second_interrupt_stops_at_once_and_gives_the_handlers_back(tmp_path: Path) -> None:
    def twice(at: int, values: dict[str, float]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    model = make_model()
    with pytest.raises(KeyboardInterrupt):
        run_fit(model, ROWS, tmp_path, on_log=twice)
    assert signal.getsignal(signal.SIGINT) is before
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_training_works_outside_the_main_thread(tmp_path: Path) -> None:
    results: list[FitResult] = []
    thread = threading.Thread(
        target=lambda: results.append(run_fit(make_model(), ROWS, tmp_path, max_steps=1)[0])
    )
    thread.start()
    thread.join()
    assert [result.steps for result in results] == [1]


@pytest.mark.parametrize("logging_steps", [1, 10])
def test_a_loss_that_is_no_number_stops_the_run_at_its_step(
    tmp_path: Path, logging_steps: int
) -> None:
    model = make_model()
    calls = []

    def break_third(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        calls.extend([1] * output.requires_grad)
        return output * float("nan") if len(calls) == 3 else output

    model.base_model.model.model.norm.register_forward_hook(break_third)
    logged: list[tuple[int, dict[str, float]]] = []
    with pytest.raises(Diverged, match=r"train/loss is nan at step 3 of 9: lower optimizer\.lr"):
        run_fit(
            model,
            ROWS,
            tmp_path,
            max_steps=9,
            logging_steps=logging_steps,
            checkpoint_steps=3,
            keep_checkpoints=3,
            on_log=lambda step, values: logged.append((step, values)),
        )
    assert logged[-1][0] == 3
    assert math.isnan(logged[-1][1]["train/loss"])
    assert names(tmp_path) == []  # the broken weights of step 3 are not kept


def test_a_gradient_that_is_no_number_stops_the_run_also_at_the_last_step(tmp_path: Path) -> None:
    model = make_model()
    weight = next(each for each in model.parameters() if each.requires_grad)
    weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(Diverged, match=r"train/grad_norm is (nan|inf) at step 1 of 1"):
        run_fit(model, ROWS, tmp_path, max_steps=1)


@pytest.mark.parametrize("batching", [Batching.padded, Batching.packed])
def test_evaluations_are_logged_and_change_nothing_in_training(
    tmp_path: Path, batching: Batching
) -> None:
    plain = make_model(dropout=0.2)
    run_fit(plain, ROWS, tmp_path, batching=batching, autocast=True)
    model = make_model(dropout=0.2)
    seen = []

    def evaluate(step: int) -> dict[str, float]:
        seen.append((step, model.config._attn_implementation))
        model.eval()
        torch.rand(5)
        ids = torch.tensor([[1, 2, 3]])
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        assert logits.shape == (1, 3, 99)
        assert logits.dtype == torch.float32
        return {"loss/sql": float(step)}

    _, logged = run_fit(
        model, ROWS, tmp_path, batching=batching, autocast=True, eval_steps=2, evaluate=evaluate
    )
    assert seen == [(2, "sdpa"), (4, "sdpa")]
    assert [entry for entry in logged if "loss/sql" in entry[1]] == [
        (2, {"loss/sql": 2.0}),
        (4, {"loss/sql": 4.0}),
    ]
    assert equal(trainable(model), trainable(plain))


def test_a_run_without_prospects_ends_behind_an_evaluation(tmp_path: Path) -> None:
    steps: list[int] = []

    def evaluate(step: int) -> dict[str, float]:
        steps.append(step)
        return {"loss/sql": float(step)}

    def run(verdicts: dict[int, str]) -> None:
        steps.clear()
        folder = tmp_path / "-".join(map(str, verdicts))
        run_fit(
            make_model(),
            ROWS,
            folder,
            max_steps=4,
            eval_steps=1,
            evaluate=evaluate,
            prune=lambda: verdicts.get(steps[-1]),
        )

    with pytest.raises(Pruned, match="too far behind") as ended:
        run({2: "too far behind"})
    assert steps == [1, 2]
    assert ended.value.result.steps == 2
    run({4: "there is nothing left to save"})
    assert steps == [1, 2, 3, 4]


def test_the_profiler_writes_a_table_and_a_trace(tmp_path: Path) -> None:
    run_fit(make_model(), ROWS, tmp_path, max_steps=7, profile=True)
    assert names(tmp_path) == ["profile.json", "profile.txt"]
    text = (tmp_path / "profile.txt").read_text()
    assert text.startswith("3 steps in ")
    assert "aten::mm" in text
    assert "CPU Mem" in text
    trace = json.loads((tmp_path / "profile.json").read_text())
    assert any("aten::" in event.get("name", "") for event in trace["traceEvents"])


def test_the_operations_of_products_are_counted_as_by_hand() -> None:
    left, right = torch.ones(2, 3), torch.ones(3, 5)
    with torch.profiler.profile(record_shapes=True) as profile:
        left @ right
        torch.ones(2, 5).addmm_(left, right)
        torch.bmm(torch.ones(7, 2, 3), torch.ones(7, 3, 5))
        torch.nn.functional.linear(torch.ones(2, 4, 3), right.t())
    counted = count_flops(profile.key_averages(group_by_input_shape=True))
    assert counted == 2 * 2 * 3 * 5 * (1 + 1 + 7 + 4)


def test_profiling_a_single_step_works(tmp_path: Path) -> None:
    run_fit(make_model(), ROWS, tmp_path, max_steps=1, profile=True)
    assert names(tmp_path) == ["profile.json", "profile.txt"]


def test_padding_without_a_pad_token_is_refused(tmp_path: Path) -> None:
    class Tokenizer:
        pad_token_id = None

    def train(batching: Batching) -> None:
        fit(
            make_model(),
            Tokenizer(),
            ROWS,
            trainer=make_trainer(batching=batching, max_steps=1),
            optimizer=make_optimizer(),
            schedule=Schedule(name=ScheduleName.constant, warmup_ratio=0.0),
            autocast=False,
            seed=0,
            folder=tmp_path,
            log=lambda step, values: None,
            resume=False,
        )

    train(Batching.packed)
    with pytest.raises(ValueError, match=r"no pad token: give it one, or use trainer\.batching"):
        train(Batching.padded)


def test_logits_are_computed_for_supervised_places_alone_and_in_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[int] = []

    def spy(x: torch.Tensor, group: Any) -> Any:
        if group[0].base.out_features == VOCABULARY:
            places.append(x.shape[1])
        return project(x, group)

    monkeypatch.setattr("dollyllama.fast.attach.project", spy)
    monkeypatch.setattr("dollyllama.training.loss._LOGITS", 40 * VOCABULARY)
    run_fit(make_model(), ROWS, tmp_path, batch_size=8, max_steps=1)
    supervised = sum(row.supervised for row in ROWS)
    assert supervised > 60
    padded = 16 * math.ceil(supervised / 16)
    assert places == [32] * (padded // 32) + [16] * (padded % 32 // 16)


def test_a_budget_of_seconds_is_one_of_tokens_found_by_a_pilot_that_leaves_no_trace(
    tmp_path: Path,
) -> None:
    first, again, plain = (make_model(dropout=0.1) for _ in range(3))
    by_time, _ = run_fit(first, ROWS, tmp_path / "one", max_seconds=0.5)
    budget = json.loads((tmp_path / "one/budget.json").read_text(encoding="utf-8"))
    assert budget["max_tokens"] == max(1, round(0.5 * budget["tokens_per_second"]))
    assert names(tmp_path / "one") == ["budget.json"]
    # The same tokens asked for by their number are the same training, bit for bit.
    by_number, _ = run_fit(plain, ROWS, tmp_path / "two", max_tokens=budget["max_tokens"])
    assert by_time.steps == by_number.steps
    assert equal(trainable(first), trainable(plain))
    # A run that goes on has the budget that it began with.
    (tmp_path / "three").mkdir()
    (tmp_path / "three/budget.json").write_text(json.dumps(budget), encoding="utf-8")
    run_fit(again, ROWS, tmp_path / "three", max_seconds=0.5)
    assert equal(trainable(again), trainable(plain))
