"""Real processes by the real launcher, on this machine or on two made of network namespaces."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path


ROOT = Path(__file__).parents[1]
TIMEOUT = 600
ADDRESSES = "10.213.77.1", "10.213.77.2"


def launch_two(*arguments, fails: bool = False) -> None:
    """Run `accelerate launch` with two processes and `arguments`; they must end well, or, if `fails`, must not."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        _launcher("--num_machines", 1, "--main_process_port", port, *arguments),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr


def launch_on_two_machines(namespaces: Sequence[str], *arguments) -> None:
    """Run one `accelerate launch` of one process in each of the two `namespaces`, with one rendezvous; both must end
    well."""
    with ExitStack() as stack:
        launched = []
        for rank, name in enumerate(namespaces):
            machine = ["--num_machines", 2, "--machine_rank", rank]
            meeting = ["--main_process_ip", ADDRESSES[0], "--main_process_port", 29500]
            process = subprocess.Popen(
                ["ip", "netns", "exec", name, *_launcher(*machine, *meeting, *arguments)],
                cwd=ROOT,
                env=environment() | {"GLOO_SOCKET_IFNAME": f"{name}-if"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.terminate)
            launched.append(process)
        outputs = [process.communicate(timeout=TIMEOUT)[0] for process in launched]
    assert [process.returncode for process in launched] == [0, 0], "\n".join(outputs)


@contextmanager
def two_machines() -> Iterator[tuple[str, str] | None]:
    """Two network namespaces, each with an address of its own and a cable to the other; None where the system doesn't
    let us make them. They are gone afterwards, whatever happens."""
    names = tuple(f"td{os.getpid() % 10**6}{letter}" for letter in "ab")
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what follows `finally` is done then, too
    try:
        yield names if shutil.which("ip") and _connect(names) else None
    finally:
        if shutil.which("ip"):
            for name in names:
                _ip("netns", "del", name)  # takes its end of the cable with it, and that the other one
        signal.signal(signal.SIGTERM, before)


def _connect(names: Sequence[str]) -> bool:
    steps = [("netns", "add", name) for name in names]
    first, second = names
    steps.append(("-n", first, "link", "add", f"{first}-if", "type", "veth", "peer", f"{second}-if", "netns", second))
    for name, address in zip(names, ADDRESSES, strict=True):
        steps.append(("-n", name, "addr", "add", f"{address}/24", "dev", f"{name}-if"))
        steps += [("-n", name, "link", "set", link, "up") for link in ("lo", f"{name}-if")]
    return all(_ip(*step) for step in steps)


def _ip(*arguments: str) -> bool:
    return subprocess.run(["ip", *arguments], capture_output=True).returncode == 0


def _launcher(*arguments) -> list[str]:
    # --cpu by itself starts one process (more need MPI); --multi_gpu starts two, which use_cpu keeps on the CPU.
    kind = () if "--use_fsdp" in arguments else ("--multi_gpu",)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *kind, "--num_processes", 2]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    return [str(part) for part in (*launcher, *arguments)]


def environment() -> dict[str, str]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
