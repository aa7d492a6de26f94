"""Random bits for dropout that depend on nothing but a seed and an element's index.

The mask is a hash (Wellons' lowbias32), not a draw from a generator: the same step has the same mask on every device,
in a resumed run, in the forward and in the backward pass, and in a kernel.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence

from tinygrad import Tensor, dtypes

_seeds: list[Iterator[Tensor | None]] = []  # of the `training` that is active


@contextlib.contextmanager
def training(seeds: Tensor | Sequence[Tensor | None] | None) -> Iterator[None]:
    """While this is active, dropout drops: its n-th call takes the n-th seed (uint32), None for nothing to drop."""
    if seeds is None:
        _seeds.append(itertools.repeat(None))
    else:
        count = len(seeds) if isinstance(seeds, Sequence) else int(seeds.shape[0])
        _seeds.append(iter([seeds[i] for i in range(count)]))
    try:
        yield
    finally:
        _seeds.pop()


def next_seed() -> Tensor | None:
    """The seed of the next place that has dropout; None outside of `training`."""
    return next(_seeds[-1]) if _seeds else None


def random_bits(x: Tensor, seed: Tensor) -> Tensor:
    """A uint32 for each element of x: the hash of its index and the seed."""
    h = Tensor.arange(x.numel(), dtype=dtypes.uint32, device=x.device).reshape(x.shape) + seed
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = (h ^ (h >> 15)) * 0x846CA68B
    return h ^ (h >> 16)
