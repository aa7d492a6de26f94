"""`python gpt.py coherence`: how coherent the texts of a model are, beside real text and counted models."""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from commands.evaluate import mean_loss, text_of_run
from commands.options import WeightOptions
from commands.results import COHERENCE, SCALING, number, read_results
from commands.weights import load_weights
from data.coherence import Known, measure
from data.encoding import Encoded
from data.ngrams import NGram
from data.sources import END
from generate import Choice, Sampler, stream
from gpt import GPT, build
from runtime.cli import command, option, parse
from runtime.compiled import jit
from runtime.device import open_device
from runtime.errors import UserError
from runtime.files import atomic_write
from runtime.progress import Progress, Waiting
from runtime.run import Run
from runtime.signals import when_stopped
from tokenizer import Tokenizer

NEAR = 0.05  # how far from real text a share may be
ANCHORS = {"bigram": 2, "5-gram": 5}
PIECE = 1 << 20  # ids that are decoded at once
COUNTED = 5_000_000  # tokens of the training text that the counted models and the vocabulary are made of, at most
TOGETHER = 16  # texts that are written at once

Numbers = dict[str, float | None]


@dataclass
class CoherenceOptions(WeightOptions):
    run: str | None = option(None, "a run folder, or the folder of a sweep for all of its runs (default: the newest)")
    num_samples: int = option(64, "texts to write, and texts of the validation text beside them")
    max_new_tokens: int = option(200, "tokens of each at most")
    temperature: float = option(0.8, "of the choices, for the counted models too")
    seed: int = option(1337, "of the choices")

    def check(self) -> None:
        """Raise UserError for an invalid value."""
        if self.num_samples < 1 or self.max_new_tokens < 8 or self.seed < 0 or not 0 < self.temperature < math.inf:
            raise UserError("--num-samples must be at least 1, --max-new-tokens at least 8, --seed at least 0 and "
                            "--temperature above 0")


def coherence(argv: Sequence[str]) -> None:
    """Measure how coherent the texts of a run are, or of every run of a sweep, beside real text and counted models."""
    o, _ = parse(CoherenceOptions, argv, "gpt.py coherence", str(coherence.__doc__), positional=("run", "RUN"))
    o.check()
    open_device(o.device)
    if o.run and Path(o.run, "results.json").is_file():
        return of_sweep(o, Path(o.run))
    if o.init_from:
        raise UserError("coherence is of a run, which says what text it was trained on: leave out --init-from")
    checkpoint, run = load_weights(o, o.run)
    assert run
    anchors = Anchors(o, text_of_run(run, o.data_dir))
    numbers, sample = of_model(o, build(checkpoint), anchors)
    print(f"\n{sample}\n")
    print_table({str(run.path.name): numbers} | anchors.numbers)
    return None


# ---- what a model is compared with ----


class Anchors:
    """Real text and counted models of the same tokens, and what they measure."""

    def __init__(self, o: CoherenceOptions, text: Encoded):
        self.o, self.text, self.tokenizer = o, text, text.tokenizer
        self.end = self.tokenizer.special_tokens.get(END)
        self.start = [self.end] if self.end is not None else self.tokenizer.encode("\n", disallowed_special=())
        train = text.train[:COUNTED]
        self.known = Known.of(self.tokenizer.decode(train[i : i + PIECE].tolist()) for i in range(0, len(train), PIECE))
        self.val = np.asarray(text.val)
        if len(self.val) < 2 * o.max_new_tokens:
            raise UserError(f"the validation text has {len(self.val):,} tokens, too few for texts of "
                            f"{o.max_new_tokens}: choose --max-new-tokens")

    @property
    def stories(self) -> bool:
        """Whether the text is of many documents, which the measures of stories are for."""
        return self.end is not None and bool((self.val == self.end).any())

    def bits(self, nats: float) -> float:
        """Bits per byte of a mean loss in nats per token of the validation text."""
        return nats / math.log(2) * len(self.val) / len(self.tokenizer.decode_bytes(self.val.tolist()))

    def measured(self, texts: Sequence[str]) -> Numbers:
        return measure(texts, self.known, self.stories)

    def real_texts(self) -> list[str]:
        """Documents of the validation text, evenly chosen and cut like samples; pieces of it where it has none."""
        o, T = self.o, self.o.max_new_tokens
        if self.stories:
            begins = np.flatnonzero(self.val == self.end)[:-1] + 1  # the first may have begun in the training part
        else:
            begins = np.arange(0, len(self.val) - T, T)
        chosen = begins[np.unique(np.linspace(0, len(begins) - 1, min(o.num_samples, len(begins))).astype(int))]
        return [self.text_from(self.val[begin : begin + T].tolist()) for begin in chosen]

    def text_from(self, ids: list[int]) -> str:
        """The text of ids up to the end of a document."""
        return self.tokenizer.decode(ids[: ids.index(self.end)] if self.end in ids else ids).strip()

    @cached_property
    def models(self) -> dict[str, NGram]:
        """The counted models."""
        return {name: NGram(self.text.train[:COUNTED], self.tokenizer.vocab_size, n) for name, n in ANCHORS.items()}

    @cached_property
    def numbers(self) -> dict[str, Numbers]:
        """Real text, the bigram and the 5-gram, measured."""
        found: dict[str, Numbers] = {"real text": {"bits per byte": None, **self.measured(self.real_texts())}}
        for name, model in self.models.items():
            bits = self.bits(float(model.losses(self.val).mean()))
            found[name] = {"bits per byte": bits, **self.measured(self.texts_of(model))}
        return found

    def texts_of(self, model: NGram) -> list[str]:
        """Texts that a counted model writes."""
        o = self.o
        rngs = (np.random.default_rng((o.seed, i)) for i in range(o.num_samples))
        return [self.text_from(list(islice(model.write(self.start, o.temperature, rng), o.max_new_tokens)))
                for rng in rngs]


def of_model(o: CoherenceOptions, model: GPT, anchors: Anchors) -> tuple[Numbers, str]:
    """A model's bits per byte and the measures of its texts, and the first text that isn't short."""
    losses = jit(lambda x, y: model.losses(x, y).realize())
    loss, _ = mean_loss(losses, anchors.val, 8, model.config.block_size)
    texts = list(write_texts(o, model, anchors.tokenizer, anchors.start, anchors.end))
    sample = next((text for text in texts if len(text) > 100), max(texts, key=len))
    return {"bits per byte": anchors.bits(loss), **anchors.measured(texts)}, sample


def write_texts(
    o: CoherenceOptions, model: GPT, tokenizer: Tokenizer, start: list[int], end: int | None
) -> Iterator[str]:
    """The texts of a model, written some at a time."""
    B = min(TOGETHER, o.num_samples)
    sampler, choice, keep = Sampler(model, B), Choice(o.temperature, top_k=0), max(1, model.config.block_size // 2)
    for at in range(0, o.num_samples, B):
        texts, seeds = [""] * B, [o.seed + at + i for i in range(B)]
        starts, limit = [start] * B, o.max_new_tokens
        for i, piece in stream(model, tokenizer, starts, limit, choice, seeds, None, keep, sampler, end):
            texts[i] += piece
        yield from (text.strip() for text in texts[: o.num_samples - at])


# ---- a run, and a sweep ----


def nearness(name: str, value: float | None, real: float | None) -> bool:
    """Whether a share is within NEAR of real text's."""
    return value is not None and real is not None and abs(value - real) <= NEAR


def shown(name: str, value: float | None) -> str:
    """A measure for people."""
    if value is None:
        return "–"
    if name == "bits per byte":
        return f"{value:.3f}"
    return f"{value:.0f}" if name == "words in a text" else f"{100 * value:.1f} %"


def print_table(columns: dict[str, Numbers]) -> None:
    """A line for each measure, a column for each text; a star where it is near real text."""
    print(f"{'':<20}" + "".join(f"{name[-14:]:>16}" for name in columns))
    real = columns["real text"]
    for name in real:
        cells = [shown(name, numbers.get(name)) + (
            "*" if key != "real text" and name != "words in a text" and nearness(name, numbers.get(name), real[name])
            else " ") for key, numbers in columns.items()]
        print(f"{name:<20}" + "".join(f"{cell:>16}" for cell in cells))
    print(f"* within {100 * NEAR:.0f} points of real text")


def of_sweep(o: CoherenceOptions, folder: Path) -> None:
    """Measure every run of a sweep into coherence.json in its folder; what is there already stays."""
    path = folder / "coherence.json"
    runs = read_results(folder, SCALING, "sweep of sizes", "python gpt.py sweep")["runs"]
    asked = {"num_samples": o.num_samples, "max_new_tokens": o.max_new_tokens, "temperature": o.temperature,
             "seed": o.seed, "checkpoint": o.checkpoint}
    saved = read_measures(path) if path.is_file() else {}
    if saved.get("asked") != asked:
        saved = {"asked": asked, "runs": []}
    first = Run.open(runs[0]["run"], "gpt")
    with Waiting(Progress(sys.stderr), "counting"):
        anchors = Anchors(o, text_of_run(first, o.data_dir))
        saved["anchors"] = saved.get("anchors") or anchors.numbers
    when_stopped("stopped; what is measured is in coherence.json, and the same command goes on")
    done = {(r["setting"], r["seed"]) for r in saved["runs"]}
    for r in runs:
        if (r["setting"], r["seed"]) in done:
            continue
        checkpoint, _ = load_weights(o, r["run"])
        numbers, sample = of_model(o, build(checkpoint), anchors)
        kept = {k: r[k] for k in ("setting", "seed", "n_layer", "n_embd", "parameters", "n", "tokens", "level")}
        saved["runs"].append({**kept, "measures": numbers, "sample": sample})
        with atomic_write(path) as new:
            new.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
        share = numbers["words that exist"]
        print(f"{r['setting']:<14} seed {r['seed']}  {r['parameters']:>11,} parameters  "
              f"{numbers['bits per byte']:.3f} bits per byte  {shown('', share)} of words exist", flush=True)
    print()
    print_table(by_size(saved["runs"]) | saved["anchors"])
    print()
    print(answer(saved))
    plot = Path(sys.argv[0]).with_name("plots") / "coherence.py"
    print(f"\nwrote {path}; now try  {command(plot, folder)}")


def read_measures(path: Path) -> dict[str, Any]:
    """The coherence.json of a sweep's folder, or such a file. Raises UserError when it isn't one."""
    what, maker = "measures of a sweep", "python gpt.py coherence runs/sweep"
    saved = read_results(path, COHERENCE, what, maker, "coherence.json")
    measures = [*saved["anchors"].values(), *(r["measures"] for r in saved["runs"])]
    bits = saved["anchors"]["5-gram"].get("bits per byte")
    if any(m.keys() != measures[0].keys() for m in measures) or not number(bits):
        raise UserError(f"{path} holds no {what} that go together: make them with `{maker}`")
    return saved


def by_size(runs: Sequence[dict[str, Any]]) -> dict[str, Numbers]:
    """The mean of every measure over the seeds of each size, smallest first, of its runs on the most text."""
    most: dict[str, list[dict[str, Any]]] = {}
    for r in sorted(runs, key=lambda r: (r["parameters"], -r["tokens"])):
        group = most.setdefault(f"{r['n_layer']}x{r['n_embd']}", [])
        if not group or group[0]["tokens"] == r["tokens"]:
            group.append(r)
    means: dict[str, Numbers] = {}
    for size, group in most.items():
        names = group[0]["measures"]
        values = {name: [r["measures"][name] for r in group if r["measures"][name] is not None] for name in names}
        means[size] = {name: float(np.mean(v)) if v else None for name, v in values.items()}
    return means


def answer(saved: dict[str, Any]) -> str:
    """For each measure the smallest size that is near real text and stays so in all larger ones."""
    means, real, lines = by_size(saved["runs"]), saved["anchors"]["real text"], []
    parameters = {f"{r['n_layer']}x{r['n_embd']}": r["parameters"] for r in saved["runs"]}
    for name in real:
        if name == "words in a text":
            continue
        if name == "bits per byte":
            below = saved["anchors"]["5-gram"][name]
            good, what = {size: (m[name] or math.inf) < below for size, m in means.items()}, "below the 5-gram"
        else:
            good = {size: nearness(name, m[name], real[name]) for size, m in means.items()}
            what = f"within {100 * NEAR:.0f} points of real text"
        sizes = list(means)
        staying = [size for i, size in enumerate(sizes) if all(good[s] for s in sizes[i:])]
        reached = f"from {staying[0]}, {parameters[staying[0]]:,} parameters, on" if staying else "at no size"
        lines.append(f"{name:<20} {what}: {reached}")
    return "\n".join(lines)
