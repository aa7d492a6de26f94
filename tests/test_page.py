"""The pages of `report`, in a real browser without a network: what they compute against gpt.py, and what one sees."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from conftest import perturbed
from test_plots import make_grok_run
from tinygrad import Tensor
from tinygrad.nn.state import get_state_dict

import gpt
from commands.gpt import main
from commands.grok import main as grok_main
from data.modular import make_split, make_table
from data.waves import circle
from exchange import page as page_room
from exchange.checkpoint import read_run
from exchange.layout import Checkpoint, make_model
from exchange.page import model_blobs, write_page
from grok import Options as GrokOptions
from plots.inside import look_inside, switches
from runtime.errors import UserError
from tokenizer import CharTokenizer, GPT2Tokenizer, RegexTokenizer
from variants import VariantConfig

MODEL = ["--n-layer", "2", "--n-head", "2", "--n-embd", "32", "--block-size", "24", "--batch-size", "8",
         "--eval-batches", "2", "--eval-interval", "20", "--lr", "3e-3"]
T = 24


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("chromium isn't installed, and the pages can't be opened without it")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A model that has read a little, in a run folder with its page."""
    folder = tmp_path_factory.mktemp("run")
    with contextlib.chdir(folder):
        main(["--data", str(corpus), "--steps", "60", "--out", "run", *MODEL])
        main(["report", "run", "--out", "page.html"])
    return folder / "run"


def open_model(browser: Browser, path: Path, **size: object) -> None:
    """Open a model's page, and wait until it has written."""
    browser.open(path, **size)
    browser.run("ready")
    written(browser)


def written(browser: Browser) -> None:
    browser.until("find('#write').textContent === 'Write'")


def set_value(browser: Browser, selector: str, value: object) -> None:
    browser.run(f"(() => {{ const e = find({json.dumps(selector)}); e.value = {json.dumps(str(value))}; "
                "e.dispatchEvent(new Event('input', { bubbles: true })); })()")


def text_of(browser: Browser) -> str:
    return browser.run("text.ids.map((id) => new TextDecoder().decode(model.token(id))).join('')")


def test_the_page_opens_without_a_network_and_writes_the_text_of_gpt_py(
    browser: Browser, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    html = (run.parent / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=.(?!data:)|https?://(?!www\.w3\.org/2000/svg)", html)
    open_model(browser, run.parent / "page.html")
    for settings in ({"temperature": 0}, {"temperature": 0.8, "seed": 7}, {"top-k": 3, "top-p": 0.7, "seed": 8}):
        for name, value in {"prompt": "the king", "count": 40, **settings}.items():
            set_value(browser, f"#{name}", value)
        browser.point("#write", click=True)  # it writes already: stop
        browser.point("#write", click=True)
        written(browser)
        capsys.readouterr()
        options = [f"--{name}={value}" for name, value in ({"temperature": 0.8} | settings).items()]
        main(["sample", str(run), "--prompt", "the king", "--max-new-tokens", "40", *options])
        assert text_of(browser) == capsys.readouterr().out.removesuffix("\n")
        assert browser.run("spans().map((s) => s.textContent).join('').replaceAll('↵', '')") == text_of(browser)
    assert browser.problems == []


def test_a_text_ends_at_the_token_between_documents_as_that_of_sample_does(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("a short story<|endoftext|>" * 500)
    tokenizer = RegexTokenizer("gpt4")
    tokenizer.train("a short story" * 9, 260)
    tokenizer.register_special_tokens({"<|endoftext|>": 260})
    tokenizer.save("m")
    main(["--data", "text.txt", "--tokenizer", "m.model", "--steps", "150", "--out", "run", *MODEL, "--lr", "0.01"])
    main(["report", "run", "--out", "page.html"])
    open_model(browser, Path("page.html").resolve())
    for name, value in {"prompt": "a", "count": 40, "temperature": 0}.items():
        set_value(browser, f"#{name}", value)
    browser.point("#write", click=True)
    written(browser)
    capsys.readouterr()
    main(["sample", "run", "--prompt", "a", "--max-new-tokens", "40", "--temperature", "0"])
    text = capsys.readouterr().out.removesuffix("\n")
    assert text_of(browser) == f"{text}<|endoftext|>" == "a short story<|endoftext|>"
    assert browser.problems == []


def test_under_the_pointer_attention_sums_to_one_and_is_gpt_pys_and_so_is_every_layer(
    browser: Browser, run: Path
) -> None:
    open_model(browser, run.parent / "page.html")
    model, _ = gpt.load(run)
    ids = browser.run("text.ids")
    for i in (20, 60):  # within the context, and where the context has moved on
        browser.point(f"#t{i}")
        assert browser.run("shown.at") == i and i < len(ids)
        window = ids[max(0, i - T) : i]
        seen, place = look_inside(model, window), len(window) - 1
        weights = np.array(browser.run(f"[0, 1].map((l) => [0, 1].map((h) => [...model.attention(l, h, {place})]))"))
        assert np.abs(weights.sum(-1) - 1).max() < 1e-5 and np.abs(weights - seen.weights[:, :, place]).max() < 2e-5
        layers = np.array(browser.run(f"[0, 1, 2].map((d) => [...model.logits({place}, d)])"))
        assert np.abs(layers - seen.logits[:, place]).max() < 2e-4
        colours = browser.run(  # what one sees: the mean of all heads, as the opacity of blue
            "spans().map((s) => Number(s.style.backgroundColor.match(/[\\d.]+\\)$/)?.[0].slice(0, -1) ?? 0))")
        expected = np.zeros(len(ids))
        expected[i - len(window) : i] = 0.85 * np.sqrt(weights.mean((0, 1)))
        assert np.abs(np.array(colours) - expected).max() < 0.01
        p = np.exp(seen.logits[-1, place] - seen.logits[-1, place].max())
        shown = browser.run("[...find('#alternatives').querySelectorAll('.p')].map((e) => e.textContent)")
        assert abs(float(shown[0].rstrip(" %")) - 100 * (p / p.sum()).max()) < 0.6
    assert browser.problems == []


@pytest.mark.parametrize("column", [1, 2, 3], ids=["head", "attention", "MLP"])
def test_a_part_that_is_switched_off_changes_logits_and_loss_as_the_ablation_does(
    browser: Browser, run: Path, column: int
) -> None:
    open_model(browser, run.parent / "page.html")
    before, model = browser.run("text.ids"), gpt.load(run)[0]
    browser.point("#heads > :nth-child(1) > :nth-child(2) .switch" if column == 1 else
                  f"#heads > :nth-child(1) > :nth-child({column + 1})", click=True)
    written(browser)
    on = np.ones((2, 4), np.float32)
    on[0, column] = 0
    losses = []
    n = len(before) - 1
    padded = np.array(before + [0] * (-n % T))  # no token sees the zeros after it
    x, y = Tensor(padded[:-1].reshape(-1, T)), Tensor(padded[1:].reshape(-1, T))
    for switch in (on, np.ones_like(on)):
        with switches(model, Tensor(switch)):
            losses.append(model.losses(x, y).numpy().ravel()[:n].mean())
    said = list(map(float, re.findall(r"\d+\.\d+", browser.run("find('#effect').textContent"))))
    assert np.abs(np.array(said) - [*losses, abs(losses[0] - losses[1])]).max() < 0.006
    with switches(model, Tensor(on)):
        expected = model(Tensor([before[:T]])).numpy()[0, -1]
    logits = browser.run(f"model.forget(), [...model.logits(model.read({before}, {T}))]")
    assert np.abs(np.array(logits) - expected).max() < 2e-3
    assert browser.run("text.ids") != before and browser.run("document.querySelectorAll('.changed').length") > 0
    browser.point("#all-on", click=True)
    written(browser)
    assert browser.run("text.ids") == before and browser.problems == []


def test_keys_alone_move_through_the_text_the_heads_and_the_layers(browser: Browser, run: Path) -> None:
    open_model(browser, run.parent / "page.html")
    browser.run("find('#text').focus()")
    for _ in range(3):
        browser.press("ArrowLeft")
    ids = browser.run("text.ids")
    at = browser.run("shown.at")
    assert at == len(ids) - 4 and browser.run("find('#text').getAttribute('aria-activedescendant')") == f"t{at}"
    assert re.match(r".+, chosen with .+ %\.", browser.run("find('#spoken').textContent"))
    browser.run("find('#depth').focus()")
    browser.press("ArrowLeft")
    assert browser.run("find('#depth-shown').textContent") == "after layer 0"
    browser.press("ArrowLeft")
    window = ids[at - T : at]
    lens = look_inside(gpt.load(run)[0], window).logits[0].argmax(-1)
    expected = browser.run(f"{lens.tolist()}.map(label)")
    assert browser.run(f"spans().slice({at - T + 1}, {at + 1}).map((s) => s.dataset.guess)") == expected
    browser.run("cells.get('0.0').focus()")
    for key in ("ArrowDown", "ArrowRight", "Enter", "o"):
        browser.press(key)
    written(browser)
    assert browser.run("[shown.head, document.querySelector('.off').ariaLabel.slice(0, 8)]") == [[1, 1], "head 1.1"]
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    nameless = [node["role"]["value"] for node in nodes if not node["ignored"] and not node.get("name", {}).get("value")
                and any(p["name"] == "focusable" and p["value"]["value"] for p in node.get("properties", []))]
    assert nameless == [] and browser.problems == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_shows_everything_in_its_width_and_words_stand_out(browser: Browser, run: Path, dark: bool) -> None:
    open_model(browser, run.parent / "page.html", width=360, height=740, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") <= 360
    rgb = "(name) => getComputedStyle(document.body)[name].match(/\\d+/g).map(Number)"
    light = []
    for name in ("color", "backgroundColor"):
        c = np.array(browser.run(f"({rgb})('{name}')")) / 255
        light.append(np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])
    assert (max(light) + 0.05) / (min(light) + 0.05) > 7 and (light[1] < light[0]) == dark


def hold_to_model(browser: Browser, folder: Path, checkpoint: Checkpoint, dtype: str, within: float) -> None:
    """Attention and logits of a checkpoint's page are those of gpt.py."""
    blobs, _ = model_blobs(checkpoint, dtype)
    c = checkpoint.model
    about = {"name": "x", "dtype": dtype, "model": c, "parameters": 1, "environment": {}, "prompt": "a cab"}
    write_page(folder / "x.html", "gpt", "<x>", about, blobs)
    open_model(browser, folder / "x.html")
    end, place = c["block_size"], c["block_size"] - 1
    ids = browser.run(f"text.ids.slice(0, {end})")
    seen = look_inside(gpt.build(checkpoint), ids)
    L, nh = c["n_layer"], c["n_head"]
    weights = browser.run(f"model.forget(), model.read(text.ids, {end}), [...Array({L}).keys()].map((l) => "
                          f"[...Array({nh}).keys()].map((h) => [...model.attention(l, h, {place})]))")
    assert np.abs(np.array(weights) - seen.weights[:, :, place]).max() < within
    logits = np.array(browser.run(f"[...model.logits({place})]"))
    assert np.abs(logits - seen.logits[-1, place, : len(logits)]).max() < within * np.abs(seen.logits[-1]).max()
    assert browser.problems == [] and browser.run("document.title") == "<x>"


def random_checkpoint(config: object, tokenizer: CharTokenizer) -> Checkpoint:
    model = perturbed(make_model(config, 3))
    return Checkpoint(Path("x"), vars(model.config), get_state_dict(model), tokenizer)


LETTERS = CharTokenizer("\n abcdefghijk")


def test_variants_and_8_bits_are_seen_as_gpt_py_sees_them(browser: Browser, tmp_path: Path) -> None:
    choices = {"pos": "rope", "n_kv_head": 2, "norm": "rmsnorm", "mlp": "swiglu", "tied": False, "qk_norm": True}
    variant = random_checkpoint(VariantConfig(20, 13, 2, 4, 40, **choices), LETTERS)  # type: ignore[arg-type]
    hold_to_model(browser, tmp_path, variant, "float32", 1e-3)
    hold_to_model(browser, tmp_path, random_checkpoint(gpt.GPTConfig(20, 13, 2, 2, 64), LETTERS), "int8", 0.1)


def test_many_parameters_become_8_bits_and_too_many_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_room, "compiled_page", lambda: b"")
    saved = read_run(gpt.Run(run), "best")
    exact = model_blobs(saved)
    assert exact[1] == "float32"
    monkeypatch.setattr(page_room, "LARGEST_EXACT", 1000)
    assert model_blobs(saved)[1] == "int8" and model_blobs(saved, "float32") == exact
    monkeypatch.setattr(page_room, "LARGEST", 1000)
    with pytest.raises(UserError, match="too large for a page"):
        model_blobs(saved)


# ---- other pages ----


def test_a_grokking_page_shows_each_snapshots_answers_and_circles(browser: Browser, tmp_path: Path) -> None:
    made = make_grok_run(tmp_path / "grok")
    grok_main(["report", str(made.path), "--out", str(tmp_path / "page.html")])
    browser.open(tmp_path / "page.html")
    browser.run("ready")
    o = made.options(GrokOptions)
    table = make_table(o.op, o.p)
    split = make_split(table, o.frac, o.seed)
    assert browser.run("[find('#snapshot').max, find('#step').textContent]") == ["2", "step 200"]
    browser.run("find('#snapshot').focus()")
    for step in (100, 0):
        browser.press("ArrowLeft")
        tensors = made.load(f"snapshots/{step:06d}")[0]
        hit = tensors["logits"].numpy().argmax(1) == table.answers
        assert browser.run("find('#step').textContent") == f"step {step}"
        shares = browser.run("[...find('#table-key').querySelectorAll('b')].map((b) => parseFloat(b.textContent))")
        expected = [100 * hit[part].mean() for part in (split.train, split.val, split.clean)]
        assert shares == pytest.approx(expected, abs=0.6)
        keys = browser.run("data.keys")
        drawn = np.array(browser.run("[...find('#circles svg').querySelectorAll('circle')].map((c) => "
                                     "[Number(c.getAttribute('cx')) - 100, 100 - Number(c.getAttribute('cy'))])"))
        seen = circle(tensors["wte"].numpy(), keys[0])[0]
        scale = np.abs(drawn).max() / np.abs(seen).max()
        assert np.abs(drawn - scale * seen).max() < 0.2 and sorted(keys) == [2, 3]
    browser.point("#table")
    assert browser.run("find('#pair').textContent").startswith("5 + 5 = 10; it says ")
    assert browser.problems == []


def test_a_grokking_run_without_circles_or_snapshots_has_the_rest(browser: Browser, tmp_path: Path) -> None:
    made = make_grok_run(tmp_path / "grok", op="*")
    for there in ("#table", "#accuracy svg"):
        main(["report", str(made.path), "--out", str(tmp_path / "page.html")])
        browser.open(tmp_path / "page.html")
        browser.run("ready")
        assert browser.run(f"find('{there}') && !find('#circle-box')") and browser.problems == []
        for path in (made.path / "snapshots").iterdir():
            path.unlink()
    assert browser.run("find('#snapshots')") is None


def test_a_tokenizers_page_cuts_what_is_typed_as_the_tokenizer_does(browser: Browser, tmp_path: Path) -> None:
    bpe = RegexTokenizer("gpt4")
    bpe.train("the king and the queen of the night, 12 times: éé 😀😀! " * 20, 290)
    bpe.register_special_tokens({"<|end|>": 290})
    text = "the queen's <|end|> night\n\n  é😀 12345"
    for tokenizer, typed in ((bpe, text), (GPT2Tokenizer(), text.replace("<|end|>", "")), (LETTERS, "a cab\n")):
        if isinstance(tokenizer, GPT2Tokenizer):  # it has no file of its own
            blobs = page_room.tokenizer_blobs(tokenizer, Path("gpt2"))
            write_page(tmp_path / "page.html", "tokenizer", "gpt2", {
                "name": "gpt2", "tokens": 50257, "merges": 50000, "special": [], "environment": {}}, blobs)
        else:
            tokenizer.save(tmp_path / "mine")
            main(["report", str(tmp_path / "mine.model"), "--out", str(tmp_path / "page.html")])
        browser.open(tmp_path / "page.html")
        browser.run("ready")
        set_value(browser, "#typed", typed)
        assert browser.run("ids") == tokenizer.encode(typed, allowed_special="all")
        assert browser.run("find('#tokens').textContent").replace("↵", "").replace("◌", "") == typed
        assert browser.problems == []
    set_value(browser, "#typed", "a z")
    assert "“z”" in browser.run("find('#problem').textContent")


def test_what_has_no_page_is_refused_in_a_sentence(run: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "text.model").write_text("no tokenizer")
    (tmp_path / "mine.html").write_text("<p>mine")
    unfinished = make_grok_run(tmp_path / "unfinished")
    (unfinished.path / "metrics.jsonl").unlink()
    for arguments, message in (
        ([tmp_path], "config.json"), ([tmp_path / "broken"], "config.json"), ([tmp_path / "none"], "none"),
        ([tmp_path / "text.model"], "neither a run folder nor"), ([unfinished.path], "evaluated nothing yet"),
        ([unfinished.path, "--dtype", "int8"], "--dtype is about a model's weights"),
        ([run, "--out", tmp_path], "can't be written"),
        ([run, "--out", tmp_path / "mine.html"], "isn't a page of a report"),
    ):
        with pytest.raises(UserError, match=message):
            main(["report", *map(str, arguments)])
    assert (tmp_path / "mine.html").read_text() == "<p>mine"
