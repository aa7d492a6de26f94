"""y = x W + b on an NVIDIA GPU, with its gradients. In 16 bits a GELU or a sum that follows is in the same kernel.

What follows a product is taken into its kernel. The kernel of the product alone is then read by nobody and never runs:
the model needs no second form for that.
"""

from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

from tinygrad import Tensor, dtypes
from tinygrad.uop.ops import Ops, UOp

from kernels.graph import laid_out, matrix
from kernels.matmul import columns, multiply, multiply32, plain
from kernels.tiles import Product
from kernels.tuning import best_tile, tinygrad_is_faster

FEWEST_ROWS = 64  # of x; with fewer a product only reads W, and that tinygrad does well

_gradients: WeakKeyDictionary[UOp, tuple[Product, Tensor, Tensor]] = WeakKeyDictionary()  # of an x, and what made it


def name_of(x: Tensor) -> str:
    return "float16" if x.dtype == dtypes.half else "bfloat16"


def product(kind: str, a: Tensor, b: Tensor, shape: tuple[int, ...], float_out: bool = False) -> Tensor:
    """a b, for a gradient: the kernel that is fastest."""
    (m, k), n = matrix(a), int(b.shape[0 if kind == "nt" else -1])
    p = Product(kind, *((k, n, m) if kind == "tn" else (m, n, k)), name_of(a), float_out)
    device = str(a.device)
    if tinygrad_is_faster(device, (p,)):
        return plain(p, a, b).reshape(shape)
    y = multiply(p, best_tile(device, p), a, b, shape=shape)[0]
    if not float_out:
        _gradients[y.uop] = (p, a, b)
    return y


@dataclass(frozen=True, eq=False)
class Line:
    """y = gelu(x w + bias) + add, as much of it as there is."""

    x: Tensor
    w: Tensor  # in the 16 bits of x
    bias: Tensor | None
    transposed: bool
    gelu: bool = False
    add: Tensor | None = None


_lines: WeakKeyDictionary[UOp, Line] = WeakKeyDictionary()  # by their outputs


def make_linear(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor | None:
    """None for shapes that the kernels don't take, and where tinygrad's own form is faster."""
    (m, k), n = matrix(x), int(weight.shape[0 if transposed else 1])
    if {x.dtype, weight.dtype} == {dtypes.float32} and m >= FEWEST_ROWS:
        return linear32(laid_out(x), laid_out(weight), None if bias is None else laid_out(bias), transposed)
    if x.dtype not in (dtypes.half, dtypes.bfloat16) or k % 8 or n % 8 or m < FEWEST_ROWS:
        return None
    if tinygrad_is_faster(str(x.device), _products(m, k, n, transposed, name_of(x))):
        return None
    w = weight if weight.dtype == x.dtype else weight.cast(x.dtype).contiguous()
    return emit(Line(x, w, None if bias is None else bias.float(), transposed))


def linear32(x: Tensor, w: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    """In float32."""

    def backward(g: Tensor) -> dict[str, Tensor | None]:
        g = laid_out(g)
        a, b = (g, x) if transposed else (x, g)
        dx = multiply32("nn" if transposed else "nt", g, w, tuple(map(int, x.shape)))
        dw = multiply32("tn", a, b, tuple(map(int, w.shape)))
        return {"A": dx, "B": dw, "bias": None if bias is None else columns(g)}

    n = int(w.shape[0 if transposed else 1])
    return multiply32("nt" if transposed else "nn", x, w, (*map(int, x.shape[:-1]), n), bias, backward)


def _products(m: int, k: int, n: int, transposed: bool, dtype: str) -> tuple[Product, Product, Product]:
    """Forward, and those of the gradients of x and w."""
    forward, back = ("nt", "nn") if transposed else ("nn", "nt")
    dw = Product("tn", *((n, k) if transposed else (k, n)), m, dtype, True)
    return Product(forward, m, n, k, dtype), Product(back, m, k, n, dtype), dw


def emit(line: Line) -> Tensor:
    """The kernel of a line."""
    x, w, t = laid_out(line.x), laid_out(line.w), line.transposed
    (m, k), n = matrix(x), int(w.shape[0 if t else 1])
    p = _products(m, k, n, t, name_of(x))[0]

    def backward(g: Tensor) -> dict[str, Tensor | None]:
        given, g = g, laid_out(g, x.dtype)
        dz = gelu_dx(g, made[1]) if line.gelu else g
        a, b = (dz, x) if t else (x, dz)
        dw = product("tn", a, b, (n, k) if t else (k, n), True)
        dx = product("nn" if t else "nt", dz, w, tuple(map(int, x.shape)))
        return {"A": dx, "B": dw, "bias": None if line.bias is None else columns(dz), "R": given}

    optional = {"bias": line.bias, "add": line.add}
    made = multiply(p, best_tile(str(x.device), p), x, w, backward, gelu=line.gelu, shape=(*map(int, x.shape[:-1]), n),
                    **{key: None if value is None else laid_out(value) for key, value in optional.items()})
    _lines[made[0].uop] = line
    return made[0]


def gelu(x: Tensor) -> Tensor | None:
    """Taken into the product that x is; None where it isn't one."""
    line = _lines.get(x.uop)
    return None if line is None or line.gelu or line.add is not None else emit(replace(line, gelu=True))


def gelu_dx(g: Tensor, z: Tensor) -> Tensor:
    """The gradient of z for that of GELU(z): in the kernel of the product that g is, if it is one."""
    made = _gradients.get(g.uop)
    if made is None:
        v = z.float()
        s = (1.5957691 * (v + 0.044715 * v**3)).sigmoid()
        return (g * (s + v * s * (1 - s) * 1.5957691 * (1 + 3 * 0.044715 * v.square()))).cast(g.dtype).contiguous()
    p, a, b = made
    return multiply(p, best_tile(str(a.device), p), a, b, before=z, shape=tuple(map(int, g.shape)))[0]


def residual(x: Tensor) -> Tensor | None:
    """x as one kernel, where it is the sum of a product and something else of its shape."""
    if x.uop.op is Ops.ADD:
        for this, other in (x.uop.src, x.uop.src[::-1]):
            line = _lines.get(this)
            if line and line.add is None and other.shape == this.shape and other.dtype == this.dtype:
                return emit(replace(line, add=Tensor(other)))
    return None
