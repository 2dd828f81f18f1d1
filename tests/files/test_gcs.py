"""URLs of Google Cloud Storage, on an emulator: a log is read, data are committed whole, the log is not flooded."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cluster.head import free_ports, status

from raymerge.artifacts import open_artifact
from raymerge.cli import main
from raymerge.data import demo
from raymerge.data.sequences import read_partition
from raymerge.files import storage
from raymerge.files.filesystem import Store
from raymerge.stages.inputs import partitions_of

BUCKET = "gs://shop"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket of a server on loopback that ends with the test."""
    [port] = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host=127.0.0.1", f"--port={port}"]
    command += ["--in-memory", f"--default-bucket={BUCKET.removeprefix('gs://')}"]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 60
        while status(f"{address}/storage/v1/b/shop") != 200:
            assert server.poll() is None and time.monotonic() < end, (tmp_path / "server.log").read_text()
            time.sleep(0.1)
        yield BUCKET
    finally:
        server.kill()
        server.wait()


def test_a_log_is_prepared_from_and_to_it(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    pq.write_table(demo.generate(seed=5, users=120, items=100), tmp_path / "log.parquet")
    storage.write_bytes(f"{bucket}/log.parquet", (tmp_path / "log.parquet").read_bytes())
    places = ["--input", f"{bucket}/log.parquet", "--output", f"{bucket}/out"]
    command = ["prepare", "--recipe", "demo", *places, "--set", "prepare.partitions=2"]
    command += ["--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    made = []
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main(command)
        out, err = capsys.readouterr()
        assert ended.value.code == 0, err
        made.append(json.loads(out)["url"])
    assert "found, reused" in err
    assert made[0] == made[1] and made[0].startswith(f"{bucket}/out/prepare/")
    data = open_artifact(made[0], "prepare")
    assert sum(len(read_partition(url).items) for url in partitions_of(data)) == data.counts["interactions"] > 2000
    assert storage.list_folder(f"{bucket}/out/prepare") == [data.digest]
    with pytest.raises(SystemExit) as ended:
        main([*command[:4], f"{bucket}/none.parquet", *command[5:]])
    assert ended.value.code == 2
    assert "no such file: gs://shop/none.parquet" in capsys.readouterr().err
    assert not [record for record in caplog.records if record.name.startswith("gcsfs")]


def test_a_silent_server_is_not_waited_for_long_but_a_download_may_take_any_time(bucket: str) -> None:
    limit = Store(bucket)._filesystem.requests_timeout
    assert limit.total is None and limit.sock_read == limit.sock_connect == 20
