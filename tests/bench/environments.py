"""Virtual environments for the peers, whose requirements conflict with ours and with each other's."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raymerge" / "bench"
TORCH = f"torch=={torch.__version__.partition('+')[0]}"  # the same for all
REQUIREMENTS = {
    "RecTools": ["rectools[torch]==0.19.0", TORCH],
    "RecBole": ["recbole==1.2.1", TORCH, "numpy<2", "scipy<1.14", "setuptools<81"],
}


class NotInstalled(Exception):
    """A peer that this machine's package index or Python does not offer; the message is one line."""


def python_of(peer: str, cache: Path) -> str:
    """The interpreter of the peer's environment, installed if necessary (takes minutes); raises NotInstalled."""
    wanted = [sys.version, *REQUIREMENTS[peer]]
    folder = cache / f"{peer.lower()}-{hashlib.sha256(repr(wanted).encode()).hexdigest()[:8]}"
    python, done = folder / "bin" / "python", folder / ".installed"
    if not done.exists():
        print(f"installing {peer} into {folder} (a few minutes, once)", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for command in ([sys.executable, "-m", "venv", str(folder)], [*pip, *REQUIREMENTS[peer]]):
            found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if found.returncode:
                errors = [line for line in found.stdout.splitlines() if "ERROR" in line] or found.stdout.splitlines()
                raise NotInstalled((errors or ["no reason given"])[-1])
        done.touch()
    return str(python)
