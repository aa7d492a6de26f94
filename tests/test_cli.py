"""Options and presets, and one sentence with exit code 2 for everything that a user can get wrong."""

import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import ENVIRONMENT, ROOT, TINY

import bigram
from benchmarks import train_step
from commands.options import PRESETS, Options
from runtime import cli
from runtime.errors import UserError
from runtime.run import Run
from tokenizer import RegexTokenizer


def parse(*argv: str) -> Options:
    return cli.parse(Options, argv, "gpt.py", "", PRESETS, lambda o: "shakespeare-char-cpu")[0]


def test_a_preset_fills_defaults_and_a_flag_always_wins() -> None:
    assert parse().n_layer == 4 and parse().preset == "shakespeare-char-cpu"
    o = parse("--preset", "gpt2", "--n-layer", "2", "--steps", "7")
    assert (o.n_layer, o.steps, o.n_embd, o.tokenizer) == (2, 7, 768, "gpt2")
    assert parse("--n-layer", "2", "--preset", "gpt2").n_layer == 2
    assert parse("--preset", "gpt2", "--dropout", "0.0").dropout == 0.0
    assert parse("--no-bias").bias is False and parse("--bias").bias is True


def test_a_script_has_the_option_preset_where_it_has_presets_or_names_its_own() -> None:
    argv = ["--preset", "gpt2"]
    assert cli.parse(train_step.Options, argv, "", "")[0].preset == "gpt2"
    with pytest.raises(UserError, match="--preset"):
        cli.parse(bigram.Options, argv, "", "")


def test_every_preset_names_only_options_that_exist() -> None:
    names = {f.name for f in fields(Options)}
    for preset, filled in PRESETS.items():
        assert set(filled) <= names, preset


def test_help_lists_every_option_with_its_default(script) -> None:
    done = script("gpt.py", "--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    for f in fields(Options):
        assert f"--{f.name.replace('_', '-')}" in text, f.name
        if f.default is not None:
            assert re.search(rf"--{f.name.replace('_', '-')} .*?\(default: {re.escape(str(f.default))}\)", text), f.name


def refused(done, *words: str) -> None:
    """One line on stderr that says these words, exit code 2, no traceback."""
    assert done.returncode == 2, done.stderr + done.stdout
    assert len(done.stderr.strip().split("\n")) == 1 and "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--no-such-flag"], ["--no-such-flag", "--help"]),
        (["--steps", "many"], ["--steps", "many"]),
        (["--steps", "0"], ["--steps must be at least 1"]),
        (["--preset", "gpt3"], ["gpt3", "gpt2"]),
        (["fly"], ["no verb 'fly'", "sample"]),
        (["--data", "nothing.txt"], ["nothing.txt", "shakespeare"]),
        (["--n-head", "3"], ["--n-embd 128", "--n-head 3"]),
        (["--vocab-size", "5"], ["--vocab-size 5"]),
        (["--dropout", "1"], ["--dropout"]),
        (["--lr", "nan"], ["--lr"]),
        (["--seed", "-1"], ["--seed"]),
        (["--device", "toaster"], ["toaster", "cuda", "cpu"]),
        (["--resume", "nowhere"], ["nowhere is not a run folder"]),
        (["sample"], ["python gpt.py"]),
        (["sample", "nowhere"], ["nowhere"]),
        (["sample", "--top-p", "0"], ["--top-p"]),
        (["sample", "--temperature", "nan"], ["--temperature"]),
        (["sample", "--seed", "-1"], ["--seed"]),
        (["sample", "--num-samples", "99999999999"], ["--num-samples", "at most 1,000,000"]),
        (["eval", "--batch-size", "0"], ["--batch-size"]),
        (["info", "runs/x", "--preset", "gpt2"], ["runs/x", "--preset"]),
        (["eval", "nowhere"], ["nowhere"]),
        (["info", "nowhere"], ["nowhere"]),
    ],
)
def test_a_users_mistake_is_one_sentence_and_code_2(args: list[str], words: list[str], corpus: Path, script) -> None:
    data = [] if args[0] in ("sample", "eval", "info", "fly") or "--data" in args else ["--data", str(corpus)]
    refused(script("gpt.py", *args, *data), *words)


def test_texts_that_cannot_be_trained_on_are_one_sentence(script, tmp_path: Path) -> None:
    cases = {"empty": (b"", "is empty"), "short": (b"abc", "too few"), "binary": (b"\xff\0", "isn't a text")}
    for name, (content, word) in cases.items():
        (tmp_path / name).write_bytes(content)
        refused(script("gpt.py", "--data", tmp_path / name), word)


def test_cuda_1_without_a_gpu_is_one_sentence(script) -> None:
    done = script("gpt.py", "--steps", "1", CUDA="1")
    if done.returncode == 0:
        pytest.skip("this machine has a GPU")
    refused(done, "NVIDIA")


def test_cuda_0_and_dev_choose_the_cpu(script) -> None:
    for env in ({"CUDA": "0", "DEV": "CPU"}, {"CUDA": "1", "DEV": "CPU"}):
        refused(script("gpt.py", "--data", "nothing.txt", **env), "nothing.txt")  # it got past the device


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a model trained for 20 steps."""
    folder = tmp_path_factory.mktemp("trained")
    command = [sys.executable, str(ROOT / "gpt.py"), "--data", str(corpus), "--out", "run", "--steps", "20", *TINY]
    subprocess.run(command, cwd=folder, env={**ENVIRONMENT, "DATA_DIR": str(folder / "data")}, check=True)
    return folder / "run"


def test_sample_streams_text_and_repeats_with_its_seed(trained: Path, script) -> None:
    common = ["sample", trained, "--max-new-tokens", 40, "--prompt", "king"]
    first = script("gpt.py", *common, "--num-samples", 2)
    assert first.returncode == 0, first.stderr
    one, two = first.stdout.split("\n--------\n")
    assert one.startswith("king") and len(one) == 44 and two.startswith("king") and two.strip() != one
    assert script("gpt.py", *common, "--seed", 1338).stdout == two
    refused(script("gpt.py", "sample", trained, "--prompt", "Ж"), "--prompt", "Ж")


def test_eval_counts_every_token_once_and_its_three_numbers_agree(trained: Path, script, corpus: Path) -> None:
    done = script("gpt.py", "eval", trained)
    assert done.returncode == 0, done.stderr
    tokens, size = (int(n.replace(",", "")) for n in re.findall(r"([\d,]+) (?:tokens|bytes)", done.stdout))
    characters = len(corpus.read_text(encoding="utf-8"))
    assert tokens == size == characters - int(0.9 * characters) - 1
    loss, perplexity, bits = map(float, re.findall(r"(?:loss|perplexity|per byte) ([\d.]+)", done.stdout))
    assert perplexity == pytest.approx(math.exp(loss), rel=1e-3) and bits == pytest.approx(loss / math.log(2), rel=1e-3)
    other = script("gpt.py", "eval", trained, "--data", corpus)
    assert f"{characters - 1:,} tokens" in other.stdout


def test_info_lists_every_tensor_and_the_formula(trained: Path, script) -> None:
    done = script("gpt.py", "info", trained)
    config = json.loads((trained / "config.json").read_text())["model"]
    V, T, L, C = (config[k] for k in ("vocab_size", "block_size", "n_layer", "n_embd"))
    assert done.stdout.count(f"{V * C + T * C + L * (12 * C * C + 13 * C) + 2 * C:,}") == 2
    assert "h.0.mlp.c_proj.weight" in done.stdout
    assert "124,439,808" in script("gpt.py", "info", "--preset", "gpt2").stdout


def test_a_resumed_run_keeps_its_options_and_refuses_others(trained: Path, script) -> None:
    refused(script("gpt.py", "--resume", trained, "--beta1", "0.5"), "--beta1 can't change")
    done = script("gpt.py", "--resume", trained, "--steps", 25, "--lr", 0.5, "--min-lr", 0.5, "--weight-decay", 0)
    assert done.returncode == 0 and "from step 20" in done.stdout, done.stderr
    last = Run(trained).metrics()[-1]
    assert last["step"] == 25 and last["lr"] == 0.5  # --lr and --min-lr
    assert Run(trained).config()["options"]["steps"] == 25  # the next --resume goes on with what this one was told


def test_a_damaged_run_is_one_sentence(trained: Path, script, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    for name in ("best.safetensors", "state.safetensors", "last.safetensors"):
        (copy / name).write_bytes((copy / name).read_bytes()[:1000])
    refused(script("gpt.py", "sample", copy), "best.safetensors is damaged")
    refused(script("gpt.py", "--resume", copy, "--steps", 30), "state.safetensors is damaged")
    (copy / "config.json").write_text("{}")
    refused(script("gpt.py", "sample", copy), "config.json is damaged")
    (copy / "config.json").write_text("{")
    refused(script("gpt.py", "sample", copy), "config.json is damaged")


def test_a_tokenizer_file_trains_and_stays_with_the_run(corpus: Path, script, tmp_path: Path) -> None:
    made = RegexTokenizer("gpt2")
    made.train(corpus.read_text(encoding="utf-8"), 300)
    made.save(tmp_path / "words")
    common = ["--data", corpus, "--out", "run", "--steps", 3, "--eval-interval", 3, "--eval-batches", 1, *TINY]
    done = script("gpt.py", "--tokenizer", "words.model", *common)
    assert done.returncode == 0 and f"tokens of {made.vocab_size:,} kinds" in done.stdout, done.stderr
    (tmp_path / "words.model").unlink()
    done = script("gpt.py", "eval", "run")
    assert done.returncode == 0, done.stderr
    refused(script("gpt.py", "--tokenizer", "words.model", *common), "words.model is neither char nor gpt2")


def test_a_run_refuses_a_text_that_has_changed_since(script, corpus: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    shutil.copy(corpus, text)
    common = ["--data", text, "--steps", 2, "--eval-interval", 2, *TINY]
    assert script("gpt.py", "--out", "run", *common).returncode == 0
    text.rename(tmp_path / "moved.txt")
    moved = script("gpt.py", "--resume", "run", "--steps", 3, "--data", "moved.txt")
    assert moved.returncode == 0, moved.stderr
    text = tmp_path / "moved.txt"
    text.write_text(corpus.read_text(encoding="utf-8")[::-1], encoding="utf-8")  # as long, with the same characters
    refused(script("gpt.py", "--resume", "run", "--steps", 4), "the text isn't the one", "moved.txt")
    refused(script("gpt.py", "eval", "run"), "the text isn't the one")
    assert script("gpt.py", "eval", "run", "--data", text).returncode == 0  # as another text it is welcome


def test_an_export_never_takes_the_place_of_a_run(script, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    config = '{"kind": "gpt", "options": {}, "model": {}, "tokenizer": {}, "corpus": {}}'
    (run / "config.json").write_text(config)
    for to in ("hf", "llmc"):
        done = script("gpt.py", "export", "--to", to, run)
        assert done.returncode == 2 and f"python gpt.py export --to {to} {run} OUT" in done.stderr
        done = script("gpt.py", "export", "--to", to, run, run)
        assert done.returncode == 2 and "is a run folder" in done.stderr and "Traceback" not in done.stderr
    assert (run / "config.json").read_text() == config


def test_presets_for_tuning_want_a_model_to_tune(script) -> None:
    for preset in ("finetune", "lora"):
        done = script("gpt.py", "--preset", preset)
        assert done.returncode == 2 and "--init-from" in done.stderr and "Traceback" not in done.stderr


def test_a_damaged_line_of_metrics_is_one_sentence(script, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "config.json").write_text('{"kind": "gpt", "options": {}, "model": {}, "tokenizer": {}, "corpus": {}}')
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"st{"step": 2}\n')
    done = script("plots/loss_curves.py", run)
    assert done.returncode == 2 and "metrics.jsonl is damaged" in done.stderr and "Traceback" not in done.stderr
