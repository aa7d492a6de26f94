"""What writes text: `Sampler` of generate.py, or on a CPU one kernel for the whole model where it writes one text."""

import sys
from collections.abc import Sequence

import numpy as np

from exchange.quantize import quantize_model
from exchange.reader import Reader, make_reader
from generate import Sampler
from gpt import GPT


def make_sampler(model: GPT, dtype: str, B: int = 1) -> Sampler:
    """A sampler of B texts. From now on the model multiplies numbers of this dtype; raises UserError where it can't."""
    if B > 1:
        quantize_model(model, dtype)
    elif reader := make_reader(model, dtype):
        return OneKernelSampler(model, reader)
    return Sampler(model, B)


class OneKernelSampler(Sampler):
    """A sampler of one text that is read by one kernel, as long as this agrees with the model.

    The prompt, with more tokens if it is short, and the first step are held to the model's own pass over the whole
    text. A line on stderr says where they differ. From then on this is a Sampler like any other.
    """

    def __init__(self, model: GPT, reader: Reader):
        super().__init__(model)
        self.reader: Reader | None = reader
        self.sure = False  # whether a step has agreed too

    def prefill(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        if self.reader and not self.sure:
            trial = self.lengthened(texts)
            self.agreed(self.reader.read(trial[0], 0), super().prefill(trial))
        if not self.reader:
            return super().prefill(texts)
        self.begin(texts)
        return self.reader.read(self.texts[0], 0)

    def step(self, tokens: Sequence[int]) -> np.ndarray:
        if not self.reader:
            return super().step(tokens)
        texts = self.longer(tokens)
        logits = self.reader.read(tokens, self.length)
        if not self.sure:
            self.sure = True
            return self.agreed(logits, super().prefill(texts))
        self.texts, self.length, self.lengths = texts, self.length + 1, self.lengths + 1
        return logits

    def agreed(self, logits: np.ndarray, expected: np.ndarray) -> np.ndarray:
        """The logits that were expected. If the kernel's are others, it isn't used again."""
        if not self.equal(logits, expected):
            self.reader = None
            print("note: the kernel for a whole model doesn't follow this one, so a token takes many: slower",
                  file=sys.stderr)
        return expected
