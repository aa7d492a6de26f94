"""A tokenizer as `tokenizer.json` of Hugging Face's `tokenizers` (https://github.com/huggingface/tokenizers).

Unlike vocab.json and merges.txt, which that library reads with GPT-2's split, this file holds the split itself and says
which tokens are special.
"""

import json
from pathlib import Path
from typing import Any

from runtime.files import atomic_write
from tokenizer import PATTERNS, BasicTokenizer

# Its engine, Oniguruma, reads two signs differently: `$` is the end of any line, and `{1,3}+` repeats what is before
# it. The second may give nothing back here either, as nothing follows that could match it.
REWRITTEN = {pattern: pattern.replace("$", r"\z").replace("{1,3}+", "{1,3}") for pattern in PATTERNS.values()}


def why_not(tokenizer: object) -> str:
    """Why a tokenizer can't be written as tokenizer.json; nothing if it can."""
    if not isinstance(tokenizer, BasicTokenizer):
        return "it is one of characters"
    if tokenizer.pattern not in (*REWRITTEN, BasicTokenizer.pattern):
        return f"its pattern {tokenizer.pattern!r} may mean something else there"
    return ""


def write_tokenizer_json(folder: Path, tokenizer: BasicTokenizer, longest: int) -> list[Path]:
    """Write tokenizer.json, and tokenizer_config.json for texts of up to `longest` tokens. Returns the paths.

    Raises ValueError for a special token that is spelled like another, and UserError when a file can't be written.
    """
    names, special = tokenizer.huggingface_names(), tokenizer.special_tokens
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bytes_as_letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    steps: list[dict[str, Any]] = [bytes_as_letters]
    if tokenizer.pattern != BasicTokenizer.pattern:  # which doesn't split
        split = {"Regex": REWRITTEN[tokenizer.pattern]}
        steps.insert(0, {"type": "Split", "pattern": split, "behavior": "Isolated", "invert": False})
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
        "vocab": {name: i for i, name in names.items() if i not in special.values()},
        "merges": [[names[a], names[b]] for a, b in tokenizer.merges],
    }
    whole = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": names[i], **flags} for i in sorted(special.values())],
        "normalizer": None, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None, "decoder": bytes_as_letters, "model": model,
    }
    end = {f"{use}_token": "<|endoftext|>" for use in ("bos", "eos") if "<|endoftext|>" in special}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": longest,
              "clean_up_tokenization_spaces": False, **end}
    paths = [folder / "tokenizer.json", folder / "tokenizer_config.json"]
    for path, content in zip(paths, (whole, config)):
        with atomic_write(path) as new:
            new.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    return paths
