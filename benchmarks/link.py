"""Two hosts on this machine with a slow link between them: run a program in which MPI sends over that link.

    python -m benchmarks.link [--gbits 1] [--ms 0.2] -- mpiexec -n 2 python gpt.py ...

The hosts are two network namespaces, each with one core and one network card (TAP). This program is the cable between
the cards, as not every kernel has netem: a packet leaves when those before it have left at that rate, and arrives some
time later. It takes Linux, root, and iproute2. Packets are large (32,000 bytes), so that the cable costs little.
"""

from runtime.script import run_main

import contextlib
import fcntl
import os
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.cli import option, parse
from runtime.device import cores
from runtime.errors import UserError
from runtime.signals import handled_by

HOSTS = {"hosta": "10.77.0.1", "hostb": "10.77.0.2"}
MTU = 32_000
QUEUE = 16_000_000  # bytes that wait in the cable at most: TCP keeps less on its way, so that nothing is lost


@dataclass
class Options:
    gbits: float = option(1.0, "Gbit/s in each direction")
    ms: float = option(0.2, "milliseconds from one host to the other")


def run(*command: object) -> None:
    """Run a program of iproute2. Raises UserError with what it says."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")


def open_card(name: str) -> int:
    """A new TAP device: what is written to this number arrives at the host, what the host sends is read from it."""
    card = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(card, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x0002 | 0x1000))  # TUNSETIFF: TAP, no header
    os.set_blocking(card, False)
    return card


@contextlib.contextmanager
def hosts() -> Iterator[list[int]]:
    """The cards of two hosts, which are there meanwhile."""
    if os.geteuid() or not shutil.which("ip"):
        raise UserError("network namespaces take root and iproute2")
    cards = []
    try:
        for name, address in HOSTS.items():
            run("ip", "netns", "add", name)
            cards.append(open_card(f"tap-{name}"))
            run("ip", "link", "set", f"tap-{name}", "netns", name)
            inside = ["ip", "netns", "exec", name, "ip"]
            run(*inside, "link", "set", f"tap-{name}", "name", "eth0")
            run(*inside, "addr", "add", f"{address}/24", "dev", "eth0")
            run(*inside, "link", "set", "eth0", "mtu", MTU, "up")
            run(*inside, "link", "set", "lo", "up")
        yield cards
    finally:
        for name in HOSTS:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        for card in cards:
            os.close(card)


def carry(cards: Sequence[int], o: Options, until: "subprocess.Popen[bytes]") -> None:
    """Be the cable while a program runs."""
    waiting: dict[int, deque[tuple[float, bytes]]] = {card: deque() for card in cards}
    free = dict.fromkeys(cards, 0.0)  # when the line towards a card is free again
    held = dict.fromkeys(cards, 0)
    with contextlib.suppress(OSError):  # what else runs here must not slow the cable
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    while until.poll() is None:
        now = time.perf_counter()
        due = [queue[0][0] for queue in waiting.values() if queue]
        ready = select.select(cards, [], [], max(0.0, min(due) - now) if due else 0.1)[0]
        now = time.perf_counter()
        for card in ready:
            to = cards[1 - list(cards).index(card)]
            with contextlib.suppress(BlockingIOError):
                for _ in range(4):
                    packet = os.read(card, MTU + 100)
                    if held[to] + len(packet) > QUEUE:
                        continue
                    free[to] = max(free[to], now) + len(packet) * 8 / (o.gbits * 1e9)
                    waiting[to].append((free[to] + o.ms / 1e3, packet))
                    held[to] += len(packet)
        for to, queue in waiting.items():
            while queue and queue[0][0] <= now:
                packet = queue.popleft()[1]
                held[to] -= len(packet)
                with contextlib.suppress(OSError):
                    os.write(to, packet)


def start(command: Sequence[str], folder: Path) -> "subprocess.Popen[bytes]":
    """Start an mpiexec on the first host; it starts the ranks on both by this launcher, as it would by ssh."""
    launcher = folder / "launcher"
    lines = (f"  *{address}*) name={name} core={i % cores()};;\n" for i, (name, address) in enumerate(HOSTS.items()))
    launcher.write_text("#!/bin/sh\n# options, the host, then a command\n"
                        "while [ \"${1#-}\" != \"$1\" ]; do shift; done\n"
                        f"case \"$1\" in\n{''.join(lines)}esac\nshift\n"
                        "exec taskset -c $core ip netns exec $name sh -c \"$*\"\n")
    launcher.chmod(0o755)
    hosted = ["-hosts", ",".join(HOSTS.values()), "-iface", "eth0", "-launcher", "ssh", "-launcher-exec", str(launcher)]
    env = {**os.environ, "UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "eth0", "FI_PROVIDER": "tcp"}
    program = shutil.which(command[0]) or command[0]
    first = ["taskset", "-c", "0", "ip", "netns", "exec", "hosta"]  # where mpiexec starts ranks by itself
    return subprocess.Popen([*first, program, *hosted, *command[1:]], env=env)


def main(argv: Sequence[str]) -> None:
    cut = list(argv).index("--") if "--" in argv else len(argv)
    o, _ = parse(Options, argv[:cut], "python -m benchmarks.link", str(__doc__))
    if not argv[cut + 1 :]:
        raise UserError("which program? mpiexec and its arguments, after two dashes")
    with tempfile.TemporaryDirectory() as folder, hosts() as cards:
        process = start(argv[cut + 1 :], Path(folder))
        with handled_by(lambda number, frame: process.send_signal(number)):  # it ends its ranks, and then we end
            carry(cards, o, process)
    sys.exit(process.returncode if process.returncode >= 0 else 128 - process.returncode)


if __name__ == "__main__":
    run_main(main)
