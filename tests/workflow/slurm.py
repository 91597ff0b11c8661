"""A Slurm of one host, started for a test and stopped by it."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

# Job steps drop SLURM_CONF from their environment and look here.
_FALLBACK = Path("/run/slurm/conf")
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "sinfo", "squeue", "srun")

# Without slurmdbd and its database there is no sacct: squeue tells how jobs ended, as long as
# MinJobAge keeps them. Limits of cores are not enforced: task/none needs no cgroups.
_CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0
SlurmdParameters=config_overrides
MinJobAge=86400
ReturnToService=2
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000
PartitionName=main Nodes=ALL Default=YES State=UP
"""


def missing() -> str | None:
    """Why this machine cannot start a Slurm of its own, if it cannot."""
    if _FALLBACK.exists() or Path("/etc/slurm/slurm.conf").exists():
        return "this machine has a Slurm of its own"
    if os.geteuid() != 0:
        return "slurmd needs root"
    if not all(shutil.which(program) for program in _PROGRAMS):
        return "Slurm is not installed; `make packages` installs it on Debian"
    return None


@contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """Munge, a controller and a node of four cores; every job ever run stays in squeue."""
    host = socket.gethostname().partition(".")[0]
    with ExitStack() as stack:
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        key = folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(1024))
        conf = folder / "slurm.conf"
        conf.write_text(_CONFIG.format(host=host, folder=folder, ports=_free_ports(2)))
        _FALLBACK.parent.mkdir(exist_ok=True)
        _FALLBACK.symlink_to(folder)
        stack.callback(_FALLBACK.unlink)
        munge = [f"--{part}-file={folder}/munge.{part}" for part in ("key", "pid", "log", "seed")]
        for name, *options in (
            ("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge),
            ("slurmctld", "-D", "-f", str(conf)),
            ("slurmd", "-D", "-f", str(conf)),
        ):
            log = stack.enter_context((folder / f"{name}.log").open("w"))
            daemon = subprocess.Popen([name, *options], stdout=log, stderr=log)
            stack.callback(daemon.wait)
            stack.callback(daemon.terminate)
            if name == "munged":
                _await(lambda: (folder / "munge.socket").exists(), folder)
        _await(lambda: "idle" in tell("sinfo", "-h", "-o", "%T", check=False), folder)
        try:
            yield
        finally:
            tell("scancel", "--user", "root")
            _await(lambda: not jobs("PENDING", "RUNNING", "COMPLETING"), folder)


def tell(*command: str, check: bool = True) -> str:
    """What a command of Slurm prints."""
    result = subprocess.run(command, capture_output=True, text=True, check=check)
    return result.stdout


def jobs(*states: str) -> dict[str, str]:
    """The comment of every job in one of the states (any, if none is named), by its number."""
    lines = tell("squeue", "-h", "-t", ",".join(states) or "all", "-o", "%i %k").splitlines()
    return dict(line.split(" ", 1) for line in lines)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _await(condition: Callable[[], bool], folder: Path, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            logs = "\n".join(path.read_text() for path in folder.glob("*.log"))
            raise TimeoutError(f"Slurm is not ready after {seconds} s:\n{logs}")
        time.sleep(0.1)
