"""The C file, `gpt.py sample`, llama.cpp and CTranslate2: tokens per second, and memory, in each dtype.

    python -m benchmarks.cfile [--llama-bench PATH] [--ctranslate2] [--rounds 5] [--tokens 200]

A model of GPT-2's shape with random weights is exported in each dtype and compiled for this machine. Each program runs
in a process of its own and they take turns, because a shared machine's speed drifts by more than the differences that
are measured; the result is the ratio of the medians. `llama-bench` is the program of llama.cpp; its models are made
from the same weights by the `gguf` package. CTranslate2 needs the packages ctranslate2, transformers and torch.
"""

from runtime.script import run_main

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tinygrad.nn.state import get_state_dict

from commands.options import PRESETS
from commands.options import Options as GPTOptions
from commands.sampler import make_sampler
from exchange.cfile import DTYPES, build_model, write_model
from exchange.huggingface import read_huggingface, write_huggingface
from exchange.layout import Checkpoint
from gpt import GPT, GPTConfig, build
from runtime.cli import option, parse
from runtime.device import open_device
from runtime.errors import UserError
from runtime.files import read_json
from runtime.gpt2_files import byte_letters
from tokenizer import GPT2Tokenizer

WORD = " the"  # one token


@dataclass
class Options:
    preset: str = option("gpt2", "the preset of gpt.py whose shape is measured", list(PRESETS))
    llama_bench: str | None = option(None, "llama.cpp's program of this name, to be measured too")
    rounds: int = option(5, "turns that each program takes")
    prompt: int = option(16, "tokens of the prompt")
    tokens: int = option(200, "tokens to write in a turn")
    prefill: int = option(512, "tokens of a long prompt, which is measured alone")
    threads: str = option("1,2", "numbers of threads, separated by commas")
    ctranslate2: bool = option(False, "CTranslate2 in float32 and int8 too")
    worker: str | None = option(None, "which program to run (used by the program itself)", ("python", "ctranslate2"))
    dtype: str = option("float32", "its numbers", DTYPES)
    folder: str = option("", "where its weights are")


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "python -m benchmarks.cfile", str(__doc__))
    if o.worker:
        work(o)
        return
    open_device()
    config = GPTOptions(**PRESETS[o.preset]).config(50257)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = prepare(o, config, folder)
        compare(o, commands)


def prepare(o: Options, config: GPTConfig, folder: Path) -> dict[str, Any]:
    """Write every model; what each program is, by its name."""
    numbers = {key: getattr(config, key) for key in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")}
    tensors = get_state_dict(GPT(config))
    checkpoint, programs = Checkpoint(folder, numbers, tensors, GPT2Tokenizer()), dict[str, Any]()
    write_huggingface(folder / "hf", checkpoint)
    if o.ctranslate2:
        from ctranslate2.converters import TransformersConverter

        TransformersConverter(str(folder / "hf")).convert(str(folder / "ctranslate2"))
        about = folder / "ctranslate2" / "config.json"
        tokens = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")  # it wants one of each
        about.write_text(json.dumps(read_json(about) | tokens), encoding="utf-8")
        programs |= {f"ctranslate2 {dtype}": ("ctranslate2", dtype, folder) for dtype in ("float32", "int8")}
    for dtype in DTYPES:
        programs[f"gpt.py {dtype}"] = ("python", dtype, folder)
        write_model(folder / dtype, checkpoint, dtype)
        programs[f"C file {dtype}"] = [build_model(folder / dtype, "native"), "--temperature", "0"]
        if o.llama_bench:
            write_gguf(folder / f"{dtype}.gguf", numbers, tensors, dtype)
            programs[f"llama.cpp {dtype}"] = folder / f"{dtype}.gguf"
        size = (folder / dtype / "model.bin").stat().st_size
        print(f"{dtype}: model.bin has {size / 1e6:.1f} MB", flush=True)
    return programs


def write_gguf(path: Path, model: dict[str, Any], tensors: dict[str, Any], dtype: str) -> None:
    """The same weights as llama.cpp reads them. Raises UserError without the `gguf` package."""
    try:
        import gguf
    except ImportError as error:
        raise UserError("--llama-bench needs the package gguf: pip install gguf") from error
    kind = {"float32": "F32", "bfloat16": "BF16", "int8": "Q8_0"}[dtype]
    writer, tokenizer, letters = gguf.GGUFWriter(path, "gpt2"), GPT2Tokenizer(), byte_letters()
    writer.add_context_length(model["block_size"])
    writer.add_embedding_length(model["n_embd"])
    writer.add_block_count(model["n_layer"])
    writer.add_feed_forward_length(4 * model["n_embd"])
    writer.add_head_count(model["n_head"])
    writer.add_layer_norm_eps(1e-5)
    names = {i: "".join(letters[b] for b in token) for i, token in tokenizer.ordinary_vocab().items()}
    names |= {i: token for token, i in tokenizer.special_tokens.items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([names[i] for i in range(len(names))])
    writer.add_token_merges([f"{names[a]} {names[b]}" for a, b in tokenizer.merges])
    parts = {"ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm",
             "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down", "wte": "token_embd", "wpe": "position_embd",
             "ln_f": "output_norm"}
    for name, tensor in tensors.items():
        values, (layer, _, ending) = tensor.numpy(), name.rpartition(".")
        block, layer = (layer.split(".", 2)[1], layer.split(".", 2)[2]) if name.startswith("h.") else ("", layer)
        if block and values.ndim == 2:
            values = np.ascontiguousarray(values.T)
        known = (f"blk.{block}." if block else "") + f"{parts[layer]}.{ending}"
        if values.ndim == 2 and layer != "wpe" and kind != "F32":
            quantization = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(known, gguf.quants.quantize(values, quantization), raw_dtype=quantization)
        else:
            writer.add_tensor(known, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# A process that was forked from a large one counts that one's memory as its own, so a small one starts each program.
LAUNCHER = """
import os, subprocess, sys, time
began = time.perf_counter()
out = subprocess.DEVNULL if sys.argv[1] == "unread" else sys.stdout  # who reads along takes the core away
if int(sys.argv[2]) and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[2])])
program = subprocess.Popen(sys.argv[3:], stdout=out, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(program.pid, 0)
print(f"\\n{time.perf_counter() - began} {usage.ru_utime} {usage.ru_maxrss / 1024} {status}", flush=True)
"""


@dataclass
class Launched:
    text: str  # what a program printed
    seconds: float
    cpu: float  # seconds of all its threads
    memory: float  # MB, at its peak


def launch(*command: object, read: bool = True, cores: str = "0") -> Launched:
    """Run a program to its end, on so many cores, or 0: all. Unless what it prints is `read`, nobody waits for it."""
    how = "read" if read else "unread"
    whole = [sys.executable, "-S", "-c", LAUNCHER, how, cores, *map(str, command)]
    done = subprocess.run(whole, capture_output=True, check=True)
    text, _, last = done.stdout.decode(errors="replace").rstrip("\n").rpartition("\n")
    seconds, cpu, memory, status = last.split()
    if status != "0":
        raise SystemExit(f"{command[0]} ended with {status}")
    return Launched(text, float(seconds), float(cpu), float(memory))


def measure(o: Options, command: Sequence[object]) -> dict[str, float]:
    """The C program: tokens per second after a short prompt and in a long one, as differences of whole runs."""
    run = lambda prompt, tokens: launch(*command, "--prompt", WORD * prompt, "--max-new-tokens", tokens, read=False)
    whole, start, long = run(o.prompt, o.tokens), run(o.prompt, 1), run(o.prefill, 1)
    return {"speed": (o.tokens - 1) / (whole.seconds - start.seconds), "memory": whole.memory,
            "cpu": 1e3 * (whole.cpu - start.cpu) / (o.tokens - 1),
            "prefill": (o.prefill - o.prompt) / (long.seconds - start.seconds)}


def measure_llama(o: Options, model: Path, threads: str) -> dict[str, float]:
    """The same by llama-bench, which measures the speeds itself."""
    command = [o.llama_bench, "-m", model, "-t", threads, "-r", 1, "-o", "json", "--no-warmup"]
    run = lambda tokens: launch(*command, "-p", 0, "-n", tokens, "-d", o.prompt)
    whole, start, long = run(o.tokens), run(1), launch(*command, "-p", o.prefill, "-n", 0)
    speed = lambda text: float(json.loads(text)[-1]["avg_ts"])
    return {"speed": speed(whole.text), "prefill": speed(long.text), "memory": whole.memory,
            "cpu": 1e3 * (whole.cpu - start.cpu) / (o.tokens - 1)}


def measure_worker(o: Options, worker: tuple[str, str, Path], threads: str) -> dict[str, float]:
    """A Python program, which measures its speeds itself."""
    given = zip(("--worker", "--dtype", "--folder"), worker)
    numbers = {"--threads": threads, "--prompt": o.prompt, "--tokens": o.tokens, "--prefill": o.prefill}
    done = launch(sys.executable, "-m", "benchmarks.cfile", *itertools.chain(*given, *numbers.items()), cores=threads)
    return {**json.loads(done.text), "memory": done.memory}


def work(o: Options) -> None:
    """Run one of those: print its speeds as JSON."""
    read, write = python_program(o) if o.worker == "python" else ctranslate2_program(o)
    ids = np.random.default_rng(0).integers(0, 50257, max(o.prompt, o.prefill)).tolist()
    write(ids[: o.prompt], 4)  # compiles, and warms up
    read(ids[: o.prefill])
    began = time.perf_counter()
    read(ids[: o.prefill])
    long, began, cpu = time.perf_counter() - began, time.perf_counter(), time.process_time()
    write(ids[: o.prompt], o.tokens)
    seconds = time.perf_counter() - began
    print(json.dumps({"speed": o.tokens / seconds, "prefill": o.prefill / long,
                      "cpu": 1e3 * (time.process_time() - cpu) / o.tokens}))


Program = tuple[Callable[[list[int]], Any], Callable[[list[int], int], Any]]  # read a prompt; write after one


def python_program(o: Options) -> Program:
    """What `gpt.py sample` does."""
    open_device()
    model = build(read_huggingface(Path(o.folder, "hf")))
    sampler = make_sampler(model, o.dtype)
    read = lambda ids: sampler.prefill([ids])

    def write(ids: list[int], count: int) -> None:
        logits = read(ids)
        for _ in range(count - 1):
            logits = sampler.step([int(logits[0].argmax())])

    return read, write


def ctranslate2_program(o: Options) -> Program:
    if o.dtype == "float32":  # on AMD it takes oneDNN by itself, which is slower; in int8 MKL is
        os.environ.setdefault("CT2_USE_MKL", "1")
    try:
        import ctranslate2
    except ImportError as error:
        raise UserError("--ctranslate2 needs the package: pip install ctranslate2") from error
    made = ctranslate2.Generator(str(Path(o.folder, "ctranslate2")), compute_type=o.dtype, intra_threads=int(o.threads))
    names = {i: "".join(byte_letters()[b] for b in token) for i, token in GPT2Tokenizer().vocab.items()}

    def write(ids: list[int], count: int) -> None:
        made.generate_batch([[names[i] for i in ids]], max_length=count, min_length=count, sampling_topk=1,
                            include_prompt_in_result=False)

    return lambda ids: write(ids, 1), write


def compare(o: Options, programs: dict[str, Any]) -> None:
    results: defaultdict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    turns = [(name, threads) for threads in o.threads.split(",") for name in programs]
    for i in range(o.rounds):
        for name, threads in turns[:: 1 if i % 2 else -1]:
            if isinstance(programs[name], tuple):
                result = measure_worker(o, programs[name], threads)
            elif isinstance(programs[name], Path):
                result = measure_llama(o, programs[name], threads)
            else:
                result = measure(o, [*programs[name], "--threads", threads])
            results[name, threads].append(result)
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    keys = ("speed", "cpu", "prefill", "memory")
    medians = {turn: {k: statistics.median(r[k] for r in results[turn]) for k in keys} for turn in turns}
    for name, threads in turns:
        ours, theirs = medians[name, threads], medians.get((f"llama.cpp {name.split()[-1]}", threads))
        ratios = "  ".join(f"{ours[k] / theirs[k]:.2f}" for k in keys) if theirs and theirs is not ours else ""
        print(f"{name:20} {threads} threads  {ours['speed']:7.1f} tokens/s, {ours['cpu']:5.1f} ms of CPU time a token, "
              f"a prompt {ours['prefill']:6.0f} tokens/s, {ours['memory']:4.0f} MB   {ratios}")
    print("The ratios of these four figures are ours to llama.cpp's. Of CPU time and memory less is better.")


if __name__ == "__main__":
    run_main(main)
