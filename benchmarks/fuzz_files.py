"""Good files of every format with a few bytes or values changed, given to everything that reads them (see fuzz.py)."""

import functools
import gc
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tinygrad import Tensor

import gpt
from benchmarks.fuzzing import DOORS, SMALL, SMALL_GROK, Door, attempt, cause, inside, quiet
from data.conversations import encode_conversations
from exchange.adapters import apply_adapters
from exchange.huggingface import TOKENIZER, read_huggingface
from exchange.llmc import read_llmc_state
from exchange.peft import Adapters, write_peft
from gpt import build
from runtime.device import open_device
from runtime.gpt2_files import byte_letters
from tokenizer import RegexTokenizer

# ---- the good files ----


def make_files(folder: Path) -> None:
    """One file of each format in a folder that has text.txt, from a model of two steps and its exports."""
    open_device("cpu")
    with inside(folder), quiet():
        text = Path("text.txt").read_text()
        bpe = RegexTokenizer("gpt2")
        bpe.train(text, 270)
        bpe.register_special_tokens({"<|endoftext|>": bpe.vocab_size})
        bpe.save("m")
        train = ["--data", "text.txt", "--steps", "2", *SMALL]
        for command, argv in (
            (("gpt.py",), [*train, "--out", "runs/one"]),
            (("gpt.py",), [*train, "--tokenizer", "m.model", "--steps", "1", "--out", "runs/bpe"]),
            (("gpt.py", "export"), ["--to", "hf", "runs/bpe", "hf"]),
            (("gpt.py", "export"), ["--to", "llmc", "runs/bpe", "llmc"]),
            (("gpt.py", "export"), ["--to", "tokens", "runs/bpe", "tokens"]),
            (("tokenizer.py", "encode"), ["text.txt", "--tokenizer", "m.model", "--out", "ids.bin"]),
            (("bigram.py",), ["--data", "text.txt", "--steps", "2", "--out", "runs/bigram"]),
            (("grok.py",), [*SMALL_GROK, "--steps", "26", "--out", "runs/grok"]),
        ):
            trace = attempt(replace(door(*command), stops=()).call, argv, codes=(0,))
            assert not trace, trace
        config = json.loads(Path("hf/config.json").read_text())
        del config[TOKENIZER]  # so that the folder's own files are read
        Path("hf/config.json").write_bytes(dump(config))
        shutil.copytree("hf", "json")
        for name in ("vocab.json", "merges.txt"):
            Path("json", name).unlink()
        Path("json/tokenizer.json").write_bytes(dump(tokenizer_json(bpe)))
        a, b = (np.ones(shape, np.float32) for shape in ((16, 2), (2, 48)))
        adapters = {"h.0.attn.c_attn.lora_a": Tensor(a), "h.0.attn.c_attn.lora_b": Tensor(b)}
        write_peft(Path("peft"), Adapters(adapters, 2, 4.0), "hf")
        for path, results in made_up_results().items():
            path.parent.mkdir(parents=True)
            path.write_bytes(dump(results))


def made_up_results() -> dict[Path, Any]:
    """Files of results as the commands that train many models write them, of models that nobody trained."""
    run = {"seed": 0, "steps": 9, "parameters": 99, "val_loss": 2.0, "tokens_per_s": 1e4, "run": "runs/one"}
    grok = {"setting": "wd 1", "frac": 0.3, "n_layer": 1, "seed": 0, "step": 300, "clean_val_acc": 0.9, "train_99": 100,
            "val_99": None, "clean_val_99": None}
    sizes = [{**run, "setting": f"1x{n} {c:g}", "n_layer": 1, "n_embd": n, "parameters": 99 * n, "n": 90.0 * n,
              "tokens": 10 * n, "flops": c, "level": c, "epochs": 1.0, "val_loss": 1 + 9 / n + 1e3 / c**0.5,
              "bits_per_byte": 2.0} for n in (8, 16, 24, 32) for c in (1e6, 2e6, 4e6)]
    measures: dict[str, Any] = {"bits per byte": 2.0, "words that exist": 0.9, "words in a text": 9.0, "quotes": None}
    measured = [{**size, "measures": measures, "sample": "The dog"} for size in sizes]
    curve = [{"step": step, "plays": 2.0, "stories": 3.0} for step in (0, 2, 4)]
    tuned = [{**run, "setting": f"plays to stories: {method}", "method": method, "old": "plays", "new": "stories",
              "trained": 9, "memory_mb": 1.0, "seconds_per_step": 0.1, "curve": curve}
             for method in ("LoRA, rank 1", "from scratch")]
    compared = [{**run, "setting": name} for name in ("GPT-2", "RoPE")]
    return {
        Path("compared/results.json"): {"compare": "shakespeare-char-cpu", "steps": 9, "runs": compared},
        Path("scaled/results.json"): {"scaling": "text.txt in char tokens", "train_tokens": 9, "runs": sizes},
        Path("measures/coherence.json"): {
            "asked": {}, "anchors": dict.fromkeys(("real text", "bigram", "5-gram"), measures), "runs": measured},
        Path("fractions/results.json"): {"sweep": "fraction", "runs": [grok, {**grok, "seed": 1}]},
        Path("interventions/results.json"): {"sweep": "intervention", "runs": [grok, {**grok, "val_99": 200}]},
        Path("tuned/results.json"): {"finetuning": "{}", "steps": 4, "runs": tuned},
    }


def tokenizer_json(bpe: RegexTokenizer) -> dict[str, Any]:
    """What Hugging Face's tokenizers would save of a BPE with GPT-2's split."""
    special, letters = bpe.special_tokens, byte_letters()
    names = {i: "".join(letters[b] for b in token) for i, token in bpe.ordinary_vocab().items()}
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": {name: i for i, name in names.items()},
             "merges": [f"{names[a]} {names[b]}" for a, b in bpe.merges]}
    added = [{"id": i, "content": token, "special": True} for token, i in special.items()]
    return {"added_tokens": added, "normalizer": None, "pre_tokenizer": split, "model": model}


def door(*command: str) -> Door:
    """The door with that command."""
    return next(d for d in DOORS if d.command == command)


# ---- mutations ----

INTS = [0, 1, -1, 2, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32, 2**63, -(2**63), 10**400]
VALUES: list[Any] = [*INTS, None, True, False, 0.5, -1.5, 1e308, float("nan"), float("inf"), "", "x", "é", "\ud800",
                     "a" * 2000, [], [[]], {}, {"x": 1}, [1, 2, 3], "../text.txt", "/", "\0", ["a", "b"], [0] * 50]


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to three changes: bits flipped, a piece cut out, doubled, moved, replaced or put in; an end cut off."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        # Most of a file are weights, where any byte is a good one: half of the changes are near its beginning.
        at = rng.randrange(len(out) + 1) if rng.random() < 0.5 else rng.randrange(min(len(out), 600) + 1)
        size = rng.choice((1, 1, 2, 4, 8, 100))
        kind = rng.randrange(7)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at : at + size] = rng.randbytes(size)
        elif kind == 2:
            del out[at : at + size]
        elif kind == 3:
            out[at:at] = rng.choice((b"\0", b"\n", b"\xff", b"{", b'"', b"[", b"9", b" ", b"\xef\xbb\xbf")) * size
        elif kind == 4:
            out[at:at] = out[at : at + size]
        elif kind == 5:
            del out[at:]
        else:
            number = rng.choice(INTS[:-1]) % 2**64
            out[at : at + 4] = (number % 2**32).to_bytes(4, "little")
    return bytes(out)


def mutate_value(value: Any, rng: random.Random) -> Any:
    """A JSON value with one of its parts replaced, removed, renamed or doubled."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        value, key = dict(value), rng.choice(list(value))
        kind = rng.random()
        if kind < 0.1:
            del value[key]
        elif kind < 0.2:
            value[rng.choice(("", "x", key + " ", key.upper()))] = value.pop(key)
        else:
            value[key] = mutate_value(value[key], rng)
        return value
    if isinstance(value, list) and value and rng.random() < 0.9:
        value, at = list(value), rng.randrange(len(value))
        kind = rng.random()
        if kind < 0.15:
            del value[at]
        elif kind < 0.3:
            value.insert(at, value[rng.randrange(len(value))])
        else:
            value[at] = mutate_value(value[at], rng)
        return value
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.4:
        return value + rng.choice((-1, 1, 2, 100))
    return rng.choice(VALUES)


def dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def mutate(name: str, data: bytes, rng: random.Random) -> bytes:
    """A file with something changed; where it holds JSON, most often a value of that."""
    if rng.random() < 0.6:
        if name.endswith((".json", ".index")):
            return dump(mutate_value(json.loads(data), rng))
        if name.endswith(".jsonl"):
            lines = data.splitlines()
            at = rng.randrange(len(lines))
            lines[at] = dump(mutate_value(json.loads(lines[at]), rng))
            return b"\n".join(lines) + b"\n"
        if name.endswith(".safetensors"):
            size = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + size])
            if "about" in header.get("__metadata__", {}) and rng.random() < 0.4:
                about = mutate_value(json.loads(header["__metadata__"]["about"]), rng)
                header["__metadata__"]["about"] = json.dumps(about)
            else:
                header = mutate_value(header, rng)
            text = dump(header)
            return len(text).to_bytes(8, "little") + text + data[8 + size :]
        if name.endswith(".model"):
            lines = data.split(b"\n")
            at = rng.randrange(len(lines))
            part, _, value = lines[at].partition(b" ")
            try:
                lines[at] = part + b" " + dump(mutate_value(json.loads(value), rng))
            except ValueError:
                lines[at] = rng.choice(lines)
            return b"\n".join(lines)
    return mutate_bytes(data, rng)


# ---- what reads them ----


def use_run(path: str) -> None:
    """Open a run, and decode every id that its model may choose."""
    _, tokenizer = gpt.load(path)
    tokenizer.decode(range(tokenizer.vocab_size))


def resume(*more: str) -> None:
    """`--resume`, up to its first step."""
    replace(door("gpt.py"), stops=("trainer.Trainer.train",)).call(["--resume", "runs/one", "--steps", "3", *more])


def call(*line: str) -> Callable[[], None]:
    """What a command line does: all of it."""
    where = max((d for d in DOORS if d.command == line[: len(d.command)]), key=lambda d: len(d.command))
    return functools.partial(replace(where, stops=()).call, line[len(where.command) :])


def read_state() -> None:
    model = read_huggingface(Path("hf")).model
    read_llmc_state(Path("llmc/gpt2_124M_debug_state.bin"), model)


def use_adapters() -> None:
    """The model of a folder and the adapters of another."""
    build(apply_adapters(read_huggingface(Path("hf")), Path("peft")))


def use_tokenizer(path: str) -> None:
    call("tokenizer.py", "show", "The quick brown fox", "--tokenizer", path)()


def picture(name: str, *line: str) -> Callable[[], None]:
    """A picture, up to the file."""
    return functools.partial(replace(door(f"plots/{name}.py"), stops=("plots.style.save",)).call, line)


def page(script: str, path: str) -> Callable[[], None]:
    return functools.partial(door(script, "report").call, [path])


def resume_grok() -> None:
    replace(door("grok.py"), stops=("trainer.Trainer.train",)).call(["--resume", "runs/grok", "--steps", "30"])


def go_on(script: str, verb: str, *line: str) -> Callable[[], None]:
    """What a command that trains many models makes of its results so far, up to the next training."""
    return functools.partial(replace(door(script, verb), stops=("commands.sweeps.take_runs",)).call, line)


RUN_READERS = [lambda: use_run("runs/one"), resume, call("gpt.py", "info", "runs/one"), page("gpt.py", "runs/one")]
GROK_READERS = [picture("grok_curves", "runs/grok"), picture("grok_mechanism", "runs/grok"),
                page("grok.py", "runs/grok")]
SWEEP = ["--data", "text.txt", "--tokens", "12800", "--sizes", "1x8", "--epochs", "9", "--out", "scaled", *SMALL[-6:]]
READERS: dict[str, Sequence[Callable[[], Any]]] = {
    "runs/one/config.json": [*RUN_READERS, call("gpt.py", "export", "--to", "tokens", "runs/one", "out"),
                             call("plots/loss_curves.py", "runs/one", "--out", "out/x.png"),
                             call("engine.py", "sample", "runs/one", "--max-new-tokens", "1")],
    "runs/one/best.safetensors": [*RUN_READERS, call("engine.py", "sample", "runs/one", "--max-new-tokens", "1")],
    "runs/one/state.safetensors": [resume],
    "runs/one/metrics.jsonl": [resume, picture("loss_curves", "runs/one"), page("gpt.py", "runs/one")],
    "runs/bigram/config.json": [picture("bigram_matrix", "runs/bigram")],
    "runs/bigram/last.safetensors": [picture("bigram_matrix", "runs/bigram")],
    "runs/grok/config.json": [*GROK_READERS, resume_grok],
    "runs/grok/metrics.jsonl": [*GROK_READERS, resume_grok],
    "runs/grok/snapshots/000026.safetensors": GROK_READERS[1:],
    "compared/results.json": [picture("compare", "compared"),
                              go_on("gpt.py", "compare", "--data", "text.txt", "--out", "compared", *SMALL)],
    "scaled/results.json": [
        picture("scaling", "scaled"),
        call("gpt.py", "coherence", "scaled", "--num-samples", "1", "--max-new-tokens", "8"),
        go_on("gpt.py", "sweep", *SWEEP)],
    "measures/coherence.json": [picture("coherence", "measures")],
    "fractions/results.json": [picture("grok_sweep", "fractions"),
                               go_on("grok.py", "sweep", "fraction", "--out", "fractions")],
    "interventions/results.json": [picture("grok_sweep", "interventions")],
    "tuned/results.json": [picture("finetuning", "tuned")],
    "m.model": [lambda: use_tokenizer("m.model"),
                lambda: door("gpt.py").call(["--data", "text.txt", "--tokenizer", "m.model", "--out", "out/run"])],
    "hf/config.json": [lambda: use_run("hf")],
    "hf/model.safetensors": [lambda: use_run("hf"), lambda: use_run("hf/model.safetensors")],
    "hf/vocab.json": [lambda: use_run("hf")],
    "hf/merges.txt": [lambda: use_run("hf")],
    "json/tokenizer.json": [lambda: use_run("json")],
    "peft/adapter_config.json": [use_adapters],
    "peft/adapter_model.safetensors": [use_adapters],
    "llmc/gpt2_124M.bin": [lambda: use_run("llmc"), lambda: use_run("llmc/gpt2_124M.bin")],
    "llmc/gpt2_tokenizer.bin": [lambda: use_run("llmc")],
    "llmc/gpt2_124M_debug_state.bin": [read_state],
    "tokens/text_train.bin": [call("gpt.py", "eval", "runs/bpe", "--data", "tokens/text_train.bin")],
    "talks.jsonl": [lambda: encode_conversations([Path("talks.jsonl")], "char")],
    "items.jsonl": [call("gpt.py", "eval", "runs/one", "--choices", "items.jsonl"),
                    call("gpt.py", "eval", "runs/one", "--last-word", "items.jsonl")],
    "ids.bin": [call("tokenizer.py", "decode", "ids.bin", "--tokenizer", "m.model")],
}


def fuzz_files(count: int, seed: int, place: Path) -> Counter[str]:
    """Mutated files through everything that reads them. The faults, by kind."""
    rng, faults, begin = random.Random(seed), Counter[str](), time.monotonic()
    with inside(place), quiet():
        names = [name for name in READERS if Path(name).is_file()]
        good = {name: Path(name).read_bytes() for name in names}
        runs = {p: p.read_bytes() for p in Path("runs").rglob("*") if p.is_file()}
        for name in names:
            for reader in READERS[name]:
                if trace := attempt(reader, codes=(0,)):
                    faults[f"{name} as it was written: {trace}"] += 1
        shutil.rmtree("out", ignore_errors=True)
        for n in range(count):
            name = rng.choice(names)
            bad = mutate(name, good[name], rng)
            for reader in READERS[name]:
                Path(name).write_bytes(bad)
                if trace := attempt(reader):
                    kind = f"{name}: {cause(trace)}"
                    if kind not in faults:
                        print(kind, flush=True)
                    faults[kind] += 1
                Path(name).write_bytes(good[name])
                shutil.rmtree("out", ignore_errors=True)
                for path, data in runs.items():
                    path.write_bytes(data)
            if n % 50 == 0:
                gc.collect()
            if n % 1000 == 999:
                print(f"{n + 1:,} files, {time.monotonic() - begin:.0f} s, {len(faults)} faults", flush=True)
    return faults

