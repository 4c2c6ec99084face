"""Dense weights change the time of a pass, and of large products how they are rounded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bitsandbytes
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model

from dollyllama.config import Upcast
from dollyllama.model import dense
from dollyllama.model.dense import dense_weights
from dollyllama.model.precision import upcast
from tests.model.build import load, make_tokenizer, some_ids, write_model


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A line for each weight that is made dense, by us or by bitsandbytes."""
    made: list[int] = []

    def spy(*given: Any, **named: Any) -> Any:
        made.append(1)
        return dequantize(*given, **named)

    dequantize = bitsandbytes.functional.dequantize_4bit
    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", spy)
    return made


@pytest.mark.parametrize("method", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("what", [Upcast.norms, Upcast.none])
@pytest.mark.parametrize(
    ("tiles", "rows"),
    [pytest.param(True, 2, id="quick bfloat16"), pytest.param(False, 1, id="few rows")],
)
def test_answers_keep_their_bits_and_each_weight_is_made_once(
    tmp_path: Path,
    calls: list[int],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    double: bool,
    what: Upcast,
    tiles: bool,
    rows: int,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    model = load(write_model(tmp_path), make_tokenizer(), method, double=double)
    upcast(model, what)
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    model.eval()
    ids = some_ids(rows, 12 if tiles else 7)
    before = model(input_ids=ids).logits
    with dense_weights(model):
        for _ in range(3):
            assert torch.equal(model(input_ids=ids).logits, before)
        assert len(calls) == 14
    assert torch.equal(model(input_ids=ids).logits, before)
    assert len(calls) == 14


@pytest.mark.parametrize("room", [True, False])
def test_many_rows_are_nearer_to_the_truth_where_bfloat16_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    if not room:
        monkeypatch.setattr(dense, "_SHARE", 0.0)
    model = load(write_model(tmp_path), make_tokenizer(), "nf4")
    upcast(model, Upcast.all)
    ids = some_ids()
    with torch.no_grad():
        theirs = model(input_ids=ids).logits
        with dense_weights(model):
            ours = model(input_ids=ids).logits
        # The truth: the same 4-bit weights, all else in float32.
        for module in model.modules():
            if type(module) is Linear4bit:
                module.compute_dtype = torch.float32
        truth = model(input_ids=ids).logits
    assert 0 < (ours - truth).norm() < (theirs - truth).norm()


def test_an_unquantised_model_answers_alike_where_bfloat16_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    model = load(write_model(tmp_path), make_tokenizer(), "none")
    ids = some_ids()
    with torch.no_grad():
        theirs = model(input_ids=ids).logits
        with dense_weights(model):
            ours = model(input_ids=ids).logits
    assert ours.dtype is torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.05)


def test_without_room_nothing_is_kept(
    tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(write_model(tmp_path), make_tokenizer(), "nf4")
    room = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=100_000))
    monkeypatch.setattr(dense, "psutil", room)
    with dense_weights(model):
        model(input_ids=some_ids())
        model(input_ids=some_ids())
    assert len(calls) == 28


def test_few_rows_of_a_model_without_4_bit_layers_keep_their_bits(tmp_path: Path) -> None:
    model = load(write_model(tmp_path), make_tokenizer(), "none")
    ids = some_ids(1, 7)
    before = model(input_ids=ids).logits
    with dense_weights(model):
        assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize("method", ["nf4", "none"])
@pytest.mark.parametrize("rows", [1, 4, dense._PACKED_ROWS, dense._PACKED_ROWS + 1])
@pytest.mark.parametrize("biased", [True, False])
def test_packed_weights_give_float32_products_of_rounded_weights(
    monkeypatch: pytest.MonkeyPatch, method: str, rows: int, biased: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    torch.manual_seed(0)
    layer: Any = torch.nn.Linear(512, 384, bias=biased, dtype=torch.bfloat16)
    if method == "nf4":
        wide = layer
        layer = Linear4bit(512, 384, bias=biased, compute_dtype=torch.bfloat16, quant_type="nf4")
        layer.load_state_dict(wide.state_dict())
        layer = layer.to("cpu")
    model = torch.nn.Sequential(layer)
    model.device = torch.device("cpu")  # type: ignore[assignment]
    x = torch.randn(rows, 512).bfloat16()
    truth = x.double() @ dense.dense_weight(layer, torch.bfloat16).double().t()
    if biased:
        truth += layer.bias.double()
    with torch.no_grad(), dense_weights(model):
        given = model(x)
        of_float = model(x.float())  # nothing is rounded behind the product
    assert given.dtype is torch.bfloat16
    torch.testing.assert_close(of_float.double(), truth, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(given, of_float.bfloat16(), rtol=0, atol=0)
    assert "forward" not in layer.__dict__


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="no tiles for bfloat16")
@pytest.mark.parametrize("rows", [1, 4, 2 * dense._PACKED_ROWS])
@pytest.mark.parametrize("biased", [True, False])
def test_packed_weights_give_bfloat16_products_where_those_are_fast(
    rows: int, biased: bool
) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(512, 384, bias=biased, dtype=torch.bfloat16))
    model.device = torch.device("cpu")  # type: ignore[assignment]
    x = torch.randn(rows, 512).bfloat16()
    truth = x.double() @ model[0].weight.double().t()
    if biased:
        truth += model[0].bias.double()
    with torch.no_grad(), dense_weights(model):
        given = model(x)
    assert given.dtype is torch.bfloat16
    # Rounded once, by half of a bfloat16's last place; of sums near zero by float32's error.
    torch.testing.assert_close(given.double(), truth, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("room", [True, False])
def test_weights_are_packed_once_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    if not room:
        monkeypatch.setattr(dense, "_SHARE", 0.0)
    model = torch.nn.Sequential(torch.nn.Linear(512, 384), torch.nn.Linear(384, 8))
    model.device = torch.device("cpu")  # type: ignore[assignment]
    packed: list[torch.Size] = []

    def spy(weight: torch.Tensor, rows: int) -> torch.Tensor:
        packed.append(weight.shape)
        return reorder(weight, rows)  # type: ignore[no-any-return]

    reorder = torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", spy)
    with torch.no_grad(), dense_weights(model):
        for _ in range(3):
            model(torch.randn(2, 512))
    assert packed == ([torch.Size([384, 512])] if room else [])
