"""What other programs' files need before they can be read: names without prefixes, a tokenizer.json, no pickles."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import regex

import tokenizer as tk
from exchange.tokenizer_json import REWRITTEN
from runtime.gpt2_files import parse_huggingface

# Of torch.compile and FSDP anywhere in a name; before it of DDP, of GPT2LMHeadModel, and of a model within a model.
WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module)\.")
BEGINNINGS = re.compile(r"^((module|base_model|model|transformer)\.)+")


def without_wrappers(names: Iterable[str]) -> dict[str, str]:
    """For each tensor's name the one without what torch.compile and others put before it."""
    return {name: BEGINNINGS.sub("", WRAPPERS.sub("", name)) for name in names}


def read_tokenizer_json(path: Path) -> tk.BasicTokenizer:
    """The byte-level BPE in a tokenizer.json (https://github.com/huggingface/tokenizers), with its split.

    Raises ValueError for any other kind of tokenizer and for one that changes the text before it is split.
    """
    saved = json.loads(path.read_bytes())
    try:
        model, steps = saved["model"], saved["pre_tokenizer"]
        added = {token["content"]: token["id"] for token in saved["added_tokens"]}
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        steps = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
        if model["type"] != "BPE" or steps[-1]["type"] != "ByteLevel" or saved.get("normalizer"):
            raise ValueError(f"{path} is no byte-level BPE like GPT-2's")
        vocab = json.dumps({**model["vocab"], **added}).encode()
        pattern = _pattern(steps, path)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} isn't a tokenizer.json of the kind that is read here ({error!r})") from error
    merges = "\n".join(pairs).encode(errors="replace")
    byte_ids, ranks, special = parse_huggingface(vocab, merges, (str(path), str(path)))
    tokenizer = tk.RegexTokenizer(pattern, ranks, byte_ids) if pattern else tk.BasicTokenizer(ranks, byte_ids)
    tokenizer.register_special_tokens(special)
    return tokenizer


def _pattern(steps: list[dict[str, Any]], path: Path) -> str:
    """The pattern of a tokenizer.json's split; nothing where it has none."""
    *splits, letters = steps
    if letters.get("add_prefix_space") or len(splits) > 1 or (splits and letters.get("use_regex", True)):
        raise ValueError(f"{path} prepares its text in a way that GPT-2's tokenizer doesn't")
    if not splits:
        return "gpt2" if letters.get("use_regex", True) else ""
    if splits[0]["type"] != "Split" or splits[0]["behavior"] != "Isolated" or splits[0].get("invert"):
        raise ValueError(f"{path} splits its text in a way that is not known here")
    found = splits[0]["pattern"]["Regex"]
    known = {spelled: name for name, pattern in tk.PATTERNS.items() for spelled in (pattern, REWRITTEN[pattern])}
    if found in known:
        return known[found]
    try:
        regex.compile(found)
    except regex.error as error:
        raise ValueError(f"{path} has the split {found!r}, which can't be read ({error})") from None
    if "$" in found or "}+" in found or r"\z" in found:
        raise ValueError(f"{path} has the split {found!r}, which could mean something else here")
    return found
