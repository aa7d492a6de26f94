"""`python gpt.py sample`: write text as it comes."""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from commands.options import WriteOptions
from commands.sampler import make_sampler
from commands.weights import load_weights
from data.conversations import end_of_text
from generate import Sampler, encode_prompt, stream
from gpt import build
from runtime.cli import option, parse
from runtime.device import open_device
from runtime.errors import UserError
from runtime.progress import Progress, Waiting
from runtime.text import read_text
from tokenizer import Tokenizer


@dataclass
class SampleOptions(WriteOptions):
    prompt: str | None = option(None, "the text to go on from (default: a new line)")
    prompts: str | None = option(None, "a file with a prompt in each line, instead of one prompt")
    num_samples: int = option(1, "how many texts to write for a prompt")
    batch_size: int = option(8, "texts that are made together")
    max_new_tokens: int = option(500, "tokens to add to the prompt")
    stop: str | None = option(None, "end a text before this string; before <|endoftext|> it ends by itself")
    to_end: bool = option(False, "go on after <|endoftext|>, up to --max-new-tokens")
    keep: int | None = option(None, "tokens kept when the context is full: fewer are faster (default: all)")
    seed: int = option(1337, "of the choices; each further text has the next one")

    def check(self) -> None:
        """Raise UserError for an invalid value."""
        self.choice()
        if self.seed < 0 or self.num_samples < 1 or self.max_new_tokens < 1 or self.batch_size < 1:
            raise UserError("--seed must be at least 0, --num-samples, --max-new-tokens and --batch-size at least 1")
        if self.num_samples > 1_000_000:
            raise UserError(f"--num-samples must be at most 1,000,000, not {self.num_samples:,}")
        if self.stop == "":
            raise UserError("--stop must be a string of at least one character")
        if self.prompt is not None and self.prompts is not None:
            raise UserError("a prompt is one --prompt or a line of the file --prompts: leave one of them out")


def sample(argv: Sequence[str]) -> None:
    """`python gpt.py sample`: write text as it comes."""
    o, _ = parse(SampleOptions, argv, "gpt.py sample", str(sample.__doc__), positional=("run", "RUN"))
    o.check()
    open_device(o.device)
    checkpoint, _ = load_weights(o, o.run)
    tokenizer, T = checkpoint.known_tokenizer(), checkpoint.model["block_size"]
    if o.keep is not None and not 0 < o.keep <= T:
        raise UserError(f"--keep must be from 1 to the model's {T} tokens of context, not {o.keep}")
    prompts = {"--prompt": o.prompt} if o.prompts is None else read_prompts(o.prompts)
    encoded = [(prompt, encode_prompt(tokenizer, prompt, source)) for source, prompt in prompts.items()]
    starts = [start for start in encoded for _ in range(o.num_samples)]
    model, progress = build(checkpoint), Progress(sys.stderr)
    if max(len(ids) for _, ids in starts) + o.max_new_tokens > T:
        progress.say(f"the model sees {T} tokens at a time: of a longer text only the newest")
    sampler = make_sampler(model, o.dtype, min(o.batch_size, len(starts)))
    for at in range(0, len(starts), sampler.B):
        print("\n" + "-" * 8 + "\n" if at else "", end="")
        write_together(sampler, tokenizer, starts[at : at + sampler.B], o, o.seed + at, progress)
    print()


def write_together(
    sampler: Sampler, tokenizer: Tokenizer, starts: list[tuple[str | None, list[int]]], o: SampleOptions, seed: int,
    progress: Progress,
) -> None:
    """Write texts that are made together: the first is shown as it comes, the others when they are complete."""
    ids = [ids for _, ids in starts]
    ids += ids[-1:] * (sampler.B - len(starts))  # the compiled step has one shape
    seeds = [seed + i for i in range(sampler.B)]
    end = None if o.to_end else end_of_text(tokenizer)
    pieces = stream(sampler.model, tokenizer, ids, o.max_new_tokens, o.choice(), seeds, o.stop, o.keep, sampler, end)
    texts = [prompt or "" for prompt, _ in starts]
    with Waiting(progress, "compiling the model for one token"):
        first = next(pieces, (0, ""))
    print(texts[0], end="", flush=True)
    for i, piece in itertools.chain([first], pieces):
        if i == 0:
            print(piece, end="", flush=True)
        elif i < len(starts):
            texts[i] += piece
    for other in texts[1:]:
        print("\n" + "-" * 8 + "\n" + other, end="", flush=True)


def read_prompts(path: str) -> dict[str, str | None]:
    """The lines of a file that have something in them, by their place. Raises UserError when there is none."""
    try:
        lines = "".join(read_text(path)).replace("\r\n", "\n").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"--prompts {path} can't be read as text: {error}") from error
    prompts: dict[str, str | None] = {f"{path}, line {n}": line for n, line in enumerate(lines, 1) if line.strip()}
    if not prompts:
        raise UserError(f"--prompts {path} has no line with a prompt")
    return prompts
