"""Training on tensors without numbers: shapes and dtypes go through the code, and take no memory.

They are torch's fake tensors (``torch._subclasses``), all of them a CPU's, whatever the device that
is thought of: those of a GPU need a torch that has CUDA.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dollyllama.fast import attach, projections
from dollyllama.model import attention
from dollyllama.training.heap import Heap

#: Answers to what only numbers tell. A count is taken for very large, a comparison for true: then
#: dropout draws what it draws at most, and norms and heads are what they mostly are.
_ANSWERS: Mapping[Any, Any] = {
    torch.ops.aten._local_scalar_dense.default: 2**40,
    torch.ops.aten.equal.default: True,
    torch.ops.aten.allclose.default: True,
}


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are alive while it is entered.

    now: those alive, with what was added; most: at their peak. heap: where a CPU has them. Memory
    that tensors share counts once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self.heap = Heap()
        self._seen: dict[int, Any] = {}

    def add(self, tensor: Tensor) -> None:
        """Count a tensor that was there before."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        block = self.heap.take(size)

        def gone(_: Any) -> None:
            del self._seen[key]
            self.now -= size
            self.heap.give(block)

        self._seen[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any | None = None
    ) -> Any:
        if func in _ANSWERS:
            return _ANSWERS[func]
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor):
                self.add(each)
        return out


#: PEFT and we tell bitsandbytes' parameters by the name of their class.
_FOURBIT = type("Params4bit", (FakeTensor,), {})


def make_fake(model: nn.Module) -> list[Tensor]:
    """Put fake tensors on the CPU in place of the model's, which are on the meta device.

    Returns all of them, once each. bitsandbytes' classes of parameters know no fake ones: what
    hangs on them goes along.
    """
    made: dict[int, tuple[Any, Any]] = {}  # with the old ones, so that no id comes twice

    def fake(tensor: Any) -> Any:
        if id(tensor) not in made:
            new: Any = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
            made[id(tensor)] = new, tensor
        return made[id(tensor)][0]

    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            new = module._parameters[name] = fake(parameter)
            if (state := getattr(parameter, "quant_state", None)) is not None:
                _fake_attributes(state, fake)
                new.__class__ = _FOURBIT
                new.quant_state, new.quant_type = state, state.quant_type
            if (scales := getattr(parameter, "SCB", None)) is not None:
                int8: Any = module.state
                int8.CB, int8.SCB, new.CB = new.data, fake(scales), None
        for name, buffer in list(module.named_buffers(recurse=False)):
            module._buffers[name] = fake(buffer)
    return [new for new, _ in made.values()]


def _fake_attributes(state: Any, fake: Callable[[Any], Any]) -> None:
    for name, value in vars(state).items():
        if isinstance(value, Tensor):
            setattr(state, name, fake(value))
    if state.state2 is not None:
        _fake_attributes(state.state2, fake)


@contextmanager
def as_on_a_gpu(*, autocast: bool) -> Iterator[None]:
    """Let the training path do with a CPU's tensors what it does on a GPU, where that differs."""
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", autocast)  # PEFT asks for this one alone
    try:
        with (
            mock.patch.object(attach, "trains_by_dense", return_value=False),
            mock.patch.object(attach, "has_room_for", return_value=False),
            mock.patch.object(projections, "products_in", lambda dtype, device: dtype),
            mock.patch.object(projections, "draw_dropped", _drop_by_mask),
            mock.patch.object(attention, "_within_rows", _attend_in_half),
            mock.patch.object(nn.functional, "dropout", _dropout),
        ):
            yield
    finally:
        torch.set_autocast_enabled("cuda", before)


def _drop_by_mask(like: Tensor, p: float) -> Tensor:
    return torch.empty_like(like, dtype=torch.bool)


def _dropout(x: Tensor, p: float, training: bool, inplace: bool) -> Tensor:
    """PEFT's, which on a GPU keeps a mask of bytes, and numbers as wide as its input on a CPU."""
    return torch.native_dropout(x, p, training)[0]


def _attend_in_half(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    """All rows at once: what is kept depends on the number of tokens alone."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = (each.to(dtype) for each in (query, key, value))
    out = nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1]
    )
    return out.transpose(1, 2)
