"""Two real processes by the real launcher."""

import os
import socket
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parents[1]


def launch_two(*arguments) -> None:
    """Run `accelerate launch` with two processes and `arguments`; they must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # --cpu by itself starts one process (more need MPI); --multi_gpu starts two, which use_cpu keeps on the CPU.
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2]
    launcher += ["--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port]
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [str(part) for part in (*launcher, *arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
