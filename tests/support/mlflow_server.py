"""A real MLflow server on a free loopback port."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest


class Server:
    """`mlflow server` in its own process group, with its database and artifacts in one folder.

    It serves artifacts itself; with a password it asks for it, of the user `admin`.
    """

    def __init__(self, folder: Path, *, password: str | None = None) -> None:
        self.folder, self.password = folder, password
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        environment |= {"HOME": str(self.folder), "MLFLOW_DISABLE_TELEMETRY": "true"}
        if self.password is not None:
            command += ["--app-name", "basic-auth"]
            environment |= {"MLFLOW_AUTH_ADMIN_USERNAME": "admin", "MLFLOW_AUTH_ADMIN_PASSWORD": self.password}
            environment |= {"MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32)}
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self.wait_until_healthy(deadline=time.monotonic() + 180)

    def wait_until_healthy(self, deadline: float) -> None:
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail("mlflow server did not start:\n" + (self.folder / "server.log").read_text()[-2000:])
                time.sleep(0.1)

    def stop(self) -> None:
        """Kill it, as in a crash."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
