"""How a function in C or CUDA becomes a kernel of tinygrad's graph, with a gradient.

    y, = cpu_kernel("gelu.c", "gelu", {"Y": y}, {"X": x}, n=100, flops=1500)

calls `gelu(Y, X, n, core, cores)` of gelu.c. The prototype in the file says in which order the arguments come and of
which C type they are; here they are given by name: tensors, lists of tensors (an array of pointers), numbers, lists of
numbers, a variable of tinygrad's, or None (a null pointer). tinygrad schedules the kernel like one of its own.
"""

import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tinygrad import Tensor, dtypes
from tinygrad.engine.realize import capturing
from tinygrad.function import function
from tinygrad.renderer import Estimates
from tinygrad.uop.ops import KernelInfo, Ops, ProgramInfo, UOp

from runtime.device import TESTED, cores

FOLDER = Path(__file__).parent
CORES = cores()
Backward = Callable[[Tensor], Mapping[str, Tensor | None]]  # from the first output's gradient to the inputs', by name


# ---- a tensor as a kernel takes it ----


def in_memory(x: Tensor) -> bool:
    """Whether x is a buffer, or what a kernel of ours writes: tinygrad would copy the latter once more."""
    return x.uop.op is Ops.AFTER or x.uop.has_buffer_identity()


def laid_out(x: Tensor, dtype: Any = None) -> Tensor:
    """x as it has to lie in memory for a kernel, row after row."""
    x = x if dtype is None or x.dtype == dtype else x.cast(dtype)
    base = x.uop.base
    # A view that moves nothing would become a BUFFER_VIEW, whose use tinygrad's memory planner overlooks: the memory
    # would be used for something else too early.
    moved = base.op is Ops.BUFFER and base.numel() == x.numel() and not x.uop.has_buffer_identity()
    if moved and x.uop.contiguous_view_offset() == 0:
        return Tensor(base.reshape(*x.shape))
    return x if x.uop.op is Ops.AFTER else x.contiguous()


def add_up(scalars: Sequence[Tensor]) -> Tensor:
    """The sum of scalars, each `()`; a hundred in each kernel, as NVIDIA's take no more than 4 KB of arguments."""
    while len(scalars) > 100:
        parts = (scalars[i : i + 100] for i in range(0, len(scalars), 100))
        scalars = [Tensor.stack(*part).sum().contiguous() for part in parts]
    return Tensor.stack(*scalars).sum()


def matrix(x: Tensor) -> tuple[int, int]:
    """Rows and columns of `(..., n)`: a kernel sees a matrix whatever the shape, as a reshape would be a copy."""
    columns = int(x.shape[-1])
    return int(x.numel()) // columns, columns


def known_shape(x: Tensor) -> bool:
    """Whether every size of x is a number, none of them 0."""
    return all(isinstance(n, int) and n > 0 for n in x.shape)


# ---- sources ----


@functools.cache
def read_source(file: str) -> str:
    """The text of a file in this folder. What it includes is put where it stands, each file once."""
    return _expand(file, set())


def _expand(file: str, seen: set[str]) -> str:
    if file in seen:
        return ""
    seen.add(file)
    text = (FOLDER / file).read_text(encoding="utf-8")
    return re.sub(r'#include "(.+)"\n', lambda m: _expand(m[1], seen), text)


def parameters(source: str, function: str) -> dict[str, str]:
    """The arguments of a C function in their order: {name: its type, without const and restrict}."""
    found = re.search(rf"\bvoid (?:__launch_bounds__\(\w+\)\s+)?{function}\(([^)]*)\)", source)
    assert found, function
    out = {}
    for part in found[1].split(","):
        words = re.sub(r"\b(const|restrict)\b", " ", part).split()
        out[words[-1].lstrip("*")] = "".join(words)[: -len(words[-1].lstrip("*"))]
    return out


def literal(number: float, kind: str) -> str:
    """A number as C writes it."""
    if kind == "float":
        return "__builtin_inff()" if number == math.inf else f"{float(number)!r}f"
    return f"{int(number)}{'u' if kind == 'unsigned' else ''}"


# ---- kernels ----


def cpu_cores(flops: int) -> int:
    """How many cores a kernel should wake: each costs some 20 microseconds, which it must save.

    The sum of both times is least where the number of cores is the root of what one alone would take, over that cost.
    """
    return max(1, min(CORES, math.isqrt(flops // 250_000)))


def cpu_kernel(
    file: str,
    function: str,
    outs: Mapping[str, Tensor | Sequence[Tensor]],
    ins: Mapping[str, Tensor | Sequence[Tensor] | None],
    backward: Backward | None = None,
    scratch: Mapping[str, int] | None = None,
    *,
    flops: int,
    **numbers: Any,
) -> list[Tensor]:
    """The outputs of a C function that is called once on each core, its arguments by the names of its prototype.

    `scratch` are arrays of so many floats on each core's stack. `backward(g)` gives the gradients of `ins` by name.
    """
    source, count = read_source(file), cpu_cores(flops)
    arguments = {**outs, **ins}
    written, read = _tensors(outs), _tensors(ins)
    position = {id(t): i for i, t in enumerate((*written, *read))}
    kinds = {dtypes.float32: "float", dtypes.int32: "int", dtypes.uint32: "unsigned"}
    given, variables = [], [v for v in numbers.values() if isinstance(v, UOp)]
    for name, kind in parameters(source, function).items():
        if name in ("core", "cores") or name in (scratch or {}):
            given.append(name)
        elif name in arguments:
            tensors = arguments[name]
            if isinstance(tensors, Tensor):
                given.append(f"b{position[id(tensors)]}")
            elif tensors is None:
                given.append("0")
            else:
                const = "" if name in outs else "const "
                given.append(f"({const}{kind[:-1]} const[]){{{', '.join(f'b{position[id(t)]}' for t in tensors)}}}")
        else:
            value = numbers[name]
            if isinstance(value, UOp):
                given.append(value.arg[0])
            elif isinstance(value, Sequence):
                given.append(f"(const {kind[:-1]}[]){{{', '.join(literal(n, kind[:-1]) for n in value)}}}")
            else:
                given.append(literal(value, kind))
    label = "_".join([function, "x".join(str(n) for n in numbers.values() if isinstance(n, int))])
    label += "".join(f"_no_{name}" for name, value in ins.items() if value is None)

    def make(*buffers: UOp) -> UOp:
        declared = [f"{'' if i < len(written) else 'const '}{kinds[b.dtype.base]}* b{i}" for i, b in enumerate(buffers)]
        # tinygrad runs a kernel with a variable of this name once on each of that many threads.
        core = (UOp.variable("core_id", 0, count - 1),) if count > 1 else ()
        declared += ["int core"] * len(core) + [f"int {v.arg[0]}" for v in variables]
        body = f"const long cores = {count};" if core else "const long core = 0, cores = 1;"
        body += "".join(f" float {name}[{size}];" for name, size in (scratch or {}).items())
        body += f" {function}({', '.join(given)});"
        text = f"{source}\nWIDE void {label}({', '.join(declared)}) {{ {body} }}\n"
        device, grid = str(written[0].device), (count, 1, 1)
        return _program(device, label, text, buffers, len(written), grid, 1, flops, (*core, *variables))

    return _add_to_graph(make, written, ins, backward)


def cuda_kernel(
    file: str,
    function: str,
    grid: tuple[int, int, int],
    outs: Mapping[str, Tensor | None],
    ins: Mapping[str, Tensor | None],
    backward: Backward | None = None,
    threads: int = 128,
    *,
    flops: int,
    tensor_flops: int = 0,
    turns: int = 0,
    label: str = "",
    **constants: Any,
) -> list[Tensor]:
    """The outputs of a `__global__` function in CUDA, its buffers by the names of its prototype.

    `constants` become #defines, THREADS among them. A tensor that is None leaves the prototype and becomes a null
    pointer. Of its `flops`, `tensor_flops` are in the tensor cores. A thread reads memory in `turns` of a loop, one
    after the other. commands/roofline.py reads both.
    """
    source, arguments = read_source(file), {**outs, **ins}
    order = list(parameters(source, function))
    assert list(outs) == order[: len(outs)], "the outputs come first"
    name = f"{function}_{label}" if label else function
    head = f"// {tensor_flops} FLOPs in mma.sync, {turns} turns\n#define {function} {name}\n#define THREADS {threads}\n"
    head += "".join(f"#define {key} {value}\n" for key, value in constants.items())
    for missing in (key for key in order if arguments[key] is None):
        source = re.sub(rf",\s*(const )?\w+\* {missing}\b(?=[^)]*\))", "", source, count=1)
        head += f"#define {missing} ((const unsigned*)0)\n"
        source += f"#undef {missing}\n"
    written, given = _tensors(outs), {key: arguments[key] for key in order[len(outs) :]}

    def make(*buffers: UOp) -> UOp:
        device = str(written[0].device)
        return _program(device, name, head + source, buffers, len(written), grid, threads, flops, ())

    return _add_to_graph(make, written, given, backward)


def _tensors(arguments: Mapping[str, Tensor | Sequence[Tensor] | None]) -> list[Tensor]:
    """All tensors of some arguments, in order."""
    out: list[Tensor] = []
    for value in arguments.values():
        out += [value] if isinstance(value, Tensor) else value or []
    return out


def _program(
    device: str, name: str, text: str, buffers: Sequence[UOp], outs: int, grid: tuple[int, int, int], threads: int,
    flops: int, variables: tuple[UOp, ...],
) -> UOp:
    """tinygrad's node for a kernel whose source is there already."""
    traffic = sum(b.dtype.itemsize * math.prod(int(n) for n in b.shape) for b in buffers)
    kernel = KernelInfo(name, estimates=Estimates(flops, traffic, traffic))
    sink = UOp.sink(*[b.base for b in buffers], *variables, arg=kernel)
    every = tuple(range(len(buffers)))
    info = ProgramInfo(name, grid, (threads, 1, 1), variables, every, every[:outs], every[outs:])
    order, source = UOp(Ops.LINEAR, src=(*sink.src, sink)), UOp(Ops.SOURCE, arg=text)
    return UOp(Ops.PROGRAM, src=(sink, UOp(Ops.DEVICE, arg=device), order, source), arg=info)


def _add_to_graph(
    make: Callable[..., UOp], written: Sequence[Tensor], ins: Mapping[str, Any], backward: Backward | None
) -> list[Tensor]:
    def gradients(g: UOp, call: UOp) -> tuple[UOp | None, ...]:
        assert backward
        by_name = backward(laid_out(Tensor(g)))
        assert set(by_name) <= set(ins), set(by_name) - set(ins)
        values = [by_name.get(name) for name, value in ins.items() if value is not None]
        return (None,) * len(written) + tuple(None if d is None else d.uop for d in values)

    done = Tensor.custom_kernel(*written, *_tensors(ins), fxn=make, grad_fxn=gradients if backward else None)
    return done[: len(written)]


@contextlib.contextmanager
def not_captured() -> Iterator[None]:
    """Run what follows at once, also while a step is being captured: tinygrad would refuse to read a tensor."""
    held, capturing[:] = capturing[:], []
    try:
        yield
    finally:
        capturing[:] = held


@functools.cache
def _constant(make: Callable[..., np.ndarray], arguments: tuple[Any, ...], device: Any) -> Tensor:
    with not_captured():
        x = Tensor(make(*arguments).astype(np.float32), device="CPU")
        return x.to(device).contiguous().realize()


def constant(make: Callable[..., np.ndarray], *arguments: Any, like: Tensor) -> Tensor:
    """The table make(*arguments) as float32 on the device of another tensor, computed once. It is no parameter."""
    return _constant(make, arguments, like.device)


def with_gradient(
    forward: Callable[..., tuple[Tensor, Tensor]], backward: Callable[..., tuple[Tensor, ...]], *inputs: Tensor
) -> Tensor:
    """The first of what forward(*inputs) returns, with backward(g, *inputs, *what forward returned) as its gradients.

    Nothing in between is kept for the way back.
    """
    made: list[Tensor] = []
    gradients = lambda g, call: tuple(d.uop for d in backward(Tensor(g), *inputs, *made))
    made += function(forward, grad_fxn=gradients)(*inputs)
    return made[0]


def tested_version() -> str:
    """Why the kernels can't be used with this tinygrad; nothing if it is the one that they were tested with."""
    here = version("tinygrad")
    return "" if here == TESTED else f"they are tested with tinygrad {TESTED}, this is {here}"
