"""Files on disk: the run folder, the only thing that passes between training and everything after it.

    config.json         all that is needed to rebuild the model and the tokenizer
    metrics.jsonl       one line per log point
    last.safetensors    the newest weights; best.safetensors those with the lowest validation loss
    state.safetensors   all that is needed to go on: the step, the weights and AdamW's moments, in one file
    sample.txt          text of the finished model

Every file is written whole under another name, flushed, then renamed, so that a run killed at any moment leaves the old
file or the new one. The weights stand in state.safetensors a second time for that reason: two files can't be renamed at
once, and a step counter that disagrees with its weights would be a wrong continuation that looks right.
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import backend  # noqa: F401  (before tinygrad)

from tinygrad import Tensor
from tinygrad.nn.state import safe_load, safe_load_metadata, safe_save

from cli import UserError, whole


class Run:
    """A run folder, `runs/NAME`."""

    def __init__(self, path: Path | str):
        self.path = Path(path)

    @classmethod
    def new(cls, path: Path | str | None, kind: str) -> "Run":
        """Make the folder: the one asked for, or `runs/KIND-DATE-TIME`. Raises UserError if it holds a run already."""
        run = cls(path or Path("runs", f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"))
        if (run.path / "config.json").exists():
            raise UserError(f"{run.path} already holds a run: go on with --resume {run.path} or choose another --out")
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{run.path} can't be made ({error.strerror}); choose another folder with --out") from error
        return run

    @classmethod
    def open(cls, path: Path | str | None, kind: str) -> "Run":
        """The run in `path`, or the newest of its kind in `runs/`. Raises UserError when there is none of that kind."""
        if path is not None:
            run = cls(path)
            if not (run.path / "config.json").is_file():
                raise UserError(f"{path} is not a run folder: it has no config.json")
            if (saved := run.config()["kind"]) != kind:
                raise UserError(f"{path} holds a {saved} run, not one of {kind}.py")
            return run
        runs = newest_runs(kind)
        if not runs:
            raise UserError(f"there is no run in {Path('runs').resolve()} yet: make one with `python {kind}.py`")
        return runs[0]

    # ---- what the run is ----

    def write_config(self, config: Mapping[str, Any]) -> None:
        self.write_text("config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        with whole(self.path / name) as new:
            new.write_text(text, encoding="utf-8")

    def config(self) -> dict[str, Any]:
        path = self.path / "config.json"
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            if missing := {"kind", "options", "model", "tokenizer", "corpus"} - set(saved):
                raise ValueError(f"it has no {min(missing)}")
            return saved
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error})") from error

    def lock(self) -> None:
        """Keep other processes from training into this folder until this one ends. Raises UserError if one does."""
        try:
            import fcntl
        except ImportError:
            return  # Windows has none
        self.locked = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self.locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{self.path} is being trained by another process: wait for it, or stop it") from error

    def unlock(self) -> None:
        """Let others train into it, before this process ends."""
        if hasattr(self, "locked"):
            os.close(self.locked)
            del self.locked

    # ---- what it measured ----

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl. A kill can leave half a line: `metrics` and `forget_after` drop it."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, oldest first."""
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last newline was cut short
        return [json.loads(line) for line in lines]

    def forget_after(self, step: int) -> None:
        """Drop the lines of later steps: a resumed run takes those steps again, and logs them again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        self.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def sweep(self) -> None:
        """Remove what a killed process was in the middle of writing."""
        for path in self.path.glob(".*.*.[0-9]*"):
            path.unlink(missing_ok=True)

    # ---- weights and state ----

    def save(self, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Write `NAME.safetensors`, with `about` (JSON values) in its metadata."""
        with whole(self.path / f"{name}.safetensors") as new:
            safe_save(dict(tensors), str(new), metadata={"about": json.dumps(about)})
            new.chmod(new.stat().st_mode & 0o666)  # tinygrad makes its files executable

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors of `NAME.safetensors`, still on disk, and what `save` was told about them."""
        return load_safetensors(self.path / f"{name}.safetensors")

    def has(self, name: str) -> bool:
        return (self.path / f"{name}.safetensors").is_file()


def newest_runs(kind: str, folder: Path | str = "runs") -> list[Run]:
    """The runs of one kind (`gpt`, `bigram`) in a folder, newest first."""
    found = []
    for path in Path(folder).glob("*/config.json"):
        try:
            if json.loads(path.read_text(encoding="utf-8")).get("kind") == kind:
                found.append((path.stat().st_mtime_ns, Run(path.parent)))
        except (OSError, ValueError):
            continue  # a folder that isn't ours, or a run that died while its config was being written
    return [run for _, run in sorted(found, key=lambda pair: pair[0], reverse=True)]


def load_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (memory-mapped, on tinygrad's DISK device) and metadata of a safetensors file.

    Raises UserError when the file is missing, or is shorter or longer than its header says.
    """
    if not path.is_file():
        raise UserError(f"{path} doesn't exist")
    size = path.stat().st_size
    try:
        if size < 8:
            raise ValueError(f"it ends at byte {size}")
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > size - 8:
            raise ValueError(f"its header should end at byte {8 + header} and the file ends at byte {size}")
        _, start, about = safe_load_metadata(path)
        end = start + max((t["data_offsets"][1] for k, t in about.items() if k != "__metadata__"), default=0)
        if end != size:
            raise ValueError(f"its tensors should end at byte {end} and the file ends at byte {size}")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return safe_load(path), json.loads(about.get("__metadata__", {}).get("about", "{}"))


def fill(into: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy `tensors` into the existing tensors of the same names, in place, so that compiled steps stay valid.

    Raises UserError naming every tensor that is missing, unknown or of another shape, before anything is changed.
    """
    wrong = [f"{name} is missing" for name in into if name not in tensors]
    wrong += [f"{name} is unknown" for name in tensors if name not in into]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)} and should be {tuple(into[name].shape)}"
        for name in into
        if name in tensors and tensors[name].shape != into[name].shape
    ]
    if wrong:
        raise UserError(f"{where} doesn't fit this model: {'; '.join(wrong[:4])}")
    for name, tensor in into.items():
        tensor.assign(tensors[name].to(tensor.device).cast(tensor.dtype).contiguous())
    Tensor.realize(*into.values())
