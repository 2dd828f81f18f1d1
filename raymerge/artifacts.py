"""Results of stages: a folder with a manifest, committed whole or not at all, and found again by its digest.

An artifact is stored in `<output>/<stage>/<digest>`; the digest is that of the stage's inputs and configuration, so
several configurations share one output folder and nothing is computed twice.
"""

import hashlib
import json
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

import raymerge
from raymerge.errors import ArtifactError, ConfigError, InputError, MissingError, first_line
from raymerge.files import storage
from raymerge.files.filesystem import is_local
from raymerge.files.retries import disk_errors
from raymerge.models.encoder import EncoderConfig, SequenceEncoder
from raymerge.redaction import without_credentials

FORMAT = 4  # raised when a change of numerics or files invalidates older artifacts
MARKER = "raymerge.json"
MODEL_STAGES = ("train", "merge")
DIAGONAL_FILE = "diagonal.safetensors"


def digest_of(value: Any) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def file_digest(url: str) -> str:
    """SHA-256 of a file, read in pieces of 1 MiB."""
    sha = hashlib.sha256()
    with storage.open_file(url) as handle:
        while piece := handle.read(1 << 20):
            sha.update(piece)
    return sha.hexdigest()


@dataclass(frozen=True)
class Key:
    """What an artifact is found by: the stage that makes it and everything that its content depends on."""

    stage: str
    inputs: Mapping[str, Any]
    configuration: Any = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Name of the artifact's folder."""
        key = {"stage": self.stage, "inputs": dict(self.inputs), "configuration": self.configuration, "format": FORMAT}
        return digest_of(key)


@dataclass(frozen=True)
class Artifact:
    """A committed folder: its URL and its manifest."""

    url: str
    manifest: Mapping[str, Any] = field(repr=False)

    @property
    def digest(self) -> str:
        """Digest of the inputs and the configuration."""
        return str(self.manifest["digest"])

    @property
    def counts(self) -> dict[str, Any]:
        """What the stage reported about its result."""
        return dict(self.manifest["counts"])

    def file(self, *parts: str) -> str:
        """URL of a file or folder inside."""
        return storage.join(self.url, *parts)

    def json(self, *parts: str) -> Any:
        """Content of a JSON file inside."""
        return json.loads(storage.read_bytes(self.file(*parts)))

    def verify(self) -> "Artifact":
        """Check all files against the manifest; ArtifactError names the first that is missing or altered."""
        storage.at_once(self._verify, self.manifest["files"].items())
        return self

    def _verify(self, entry: tuple[str, str]) -> None:
        name, expected = entry
        try:
            found = file_digest(self.file(name))
        except MissingError:
            raise ArtifactError(f"{self.file(name)} is missing; delete {self.url} and run again") from None
        self._compare(name, found, expected)

    def _compare(self, name: str, found: str, expected: str) -> None:
        if found != expected:
            raise ArtifactError(
                f"{self.file(name)} was altered or truncated (sha256 {found[:12]}, manifest says {expected[:12]}); "
                f"delete {self.url} and run again"
            )

    def read(self, name: str) -> bytes:
        """Content of a file inside, whose digest is compared again: it may be hours since all files were verified."""
        expected = self.manifest["files"].get(name)
        if expected is None:
            raise ArtifactError(f"{name} is not part of the artifact {self.url}")
        content = storage.read_bytes(self.file(name))
        self._compare(name, hashlib.sha256(content).hexdigest(), expected)
        return content


def open_artifact(url: str, *stages: str) -> Artifact:
    """The committed artifact at a URL, verified; ArtifactError if there is none or it is of another stage."""
    url = storage.absolute(url)
    content = _manifest_at(url)
    if content is None:
        raise ArtifactError(f"no raymerge artifact at {without_credentials(url)} (no manifest.json)")
    artifact = _artifact(url, content)
    if artifact is None:
        raise ArtifactError(f"{storage.join(url, storage.LAST_FILE)} is not a manifest; delete {url} and run again")
    if stages and (found := artifact.manifest["stage"]) not in stages:
        raise ArtifactError(f"{url} is an artifact of stage {found!r}, not {' or '.join(map(repr, stages))}")
    return artifact.verify()


def read_file(folder: str, name: str) -> bytes:
    """Content of a file below a folder; ArtifactError if that is an artifact and the file was altered."""
    content = None if folder.startswith("http") else _manifest_at(folder)  # web servers refuse what they do not have
    artifact = _artifact(folder, content) if content is not None else None
    return artifact.read(name) if artifact else storage.read_bytes(storage.join(folder, name))


def _artifact(url: str, content: bytes) -> Artifact | None:
    """The artifact with this manifest, not verified; None if that is the manifest of something else."""
    try:
        manifest = json.loads(content)
        _ = [manifest[key] for key in ("stage", "digest", "counts", "files")]
    except (ValueError, KeyError, TypeError):
        return None
    return Artifact(url, manifest)


def _manifest_at(url: str) -> bytes | None:
    try:
        return storage.read_bytes(storage.join(url, storage.LAST_FILE))
    except MissingError:
        return None


@dataclass
class Draft:
    """An artifact in the making: files go into `folder`, figures into `counts`."""

    folder: Path
    counts: dict[str, Any] = field(default_factory=dict)

    def write_json(self, name: str, value: Any) -> None:
        """Write an indented JSON file; ArtifactError for numbers that are not finite, which JSON cannot hold."""
        try:
            text = json.dumps(value, indent=1, allow_nan=False)
        except ValueError as error:
            raise ArtifactError(f"{name} would contain a number that is not finite ({error})") from None
        (self.folder / name).write_text(text + "\n", encoding="utf-8")


class Output:
    """An output folder, which holds all artifacts of its runs."""

    def __init__(self, url: str) -> None:
        self.url = storage.absolute(url)
        self._opened = False

    def check(self) -> None:
        """Refuse a file, or a non-empty folder that raymerge did not create."""
        if is_local(self.url) and os.path.isfile(self.url):
            raise InputError(f"{self.url} is a file; --output must be a folder")
        names = storage.list_folder(self.url)
        if MARKER not in names and any(not name.startswith(MARKER) for name in names):  # a partly written marker
            raise InputError(f"{self.url} is not empty and not a raymerge output; choose another --output")

    def open(self) -> "Output":
        """Once, mark the folder as raymerge's and clear what dead processes of this machine left in staging."""
        if self._opened:
            return self
        self.check()
        storage.make_folder(self.url)
        _clear_staging(self._staging)
        marker = storage.join(self.url, MARKER)
        if not storage.exists(marker):
            storage.write_bytes(marker, json.dumps({"format": FORMAT}).encode())
        self._opened = True
        return self

    def locate(self, key: Key) -> str:
        """URL of an artifact, whether it exists yet or not."""
        return storage.join(self.url, key.stage, key.digest)

    def find(self, key: Key) -> Artifact | None:
        """The committed artifact, verified, or None if it has yet to be made."""
        url = self.locate(key)
        return open_artifact(url, key.stage) if storage.exists(storage.join(url, storage.LAST_FILE)) else None

    @contextmanager
    def draft(self, key: Key) -> Iterator[Draft]:
        """Make an artifact, which is committed once the block has ended without an error.

        After an error the staging folder is removed; what was committed before stays.
        """
        url = self.open().locate(key)
        place = self.url if is_local(self.url) else tempfile.gettempdir()
        with disk_errors(place):
            folder = self._staging_folder()
        try:
            with disk_errors(place):
                draft = Draft(folder)
                yield draft
                manifest = {
                    "stage": key.stage,
                    "digest": key.digest,
                    "inputs": dict(key.inputs),
                    "configuration": key.configuration,
                    "counts": draft.counts,
                    "format": FORMAT,
                    "version": raymerge.__version__,
                    "files": _digests(folder),
                }
                draft.write_json(storage.LAST_FILE, manifest)
                storage.commit_folder(folder, url)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def _staging(self) -> Path:
        """Where artifacts are made: in a local output, so that a rename commits them; else a temporary folder."""
        return Path(self.url, ".staging") if is_local(self.url) else Path(tempfile.gettempdir())

    def _staging_folder(self) -> Path:
        prefix = f"{_name_here()}-{os.getpid()}-"
        if not is_local(self.url):
            return Path(tempfile.mkdtemp(prefix=prefix))
        folder = self._staging / f"{prefix}{uuid.uuid4().hex[:8]}"
        storage.make_folder(str(folder))
        return folder


def _name_here() -> str:
    """Prefix of the names of this machine's staging folders; the process id follows."""
    return f"raymerge-{socket.gethostname()}"


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file_digest(str(file)) for file in files}


def _clear_staging(folder: Path) -> None:
    for left in folder.glob("raymerge-*-*-*"):
        name, pid, _ = left.name.rsplit("-", 2)
        if name == _name_here() and pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    """Whether a process of this machine is running, whoever owns it."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors as safetensors; equal names and values give equal bytes."""
    contiguous = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    file.write_bytes(safetensors.torch.save(contiguous))


def load_tensors(url: str) -> dict[str, Tensor]:
    """Read a safetensors file; ArtifactError if it is not one."""
    try:
        return safetensors.torch.load(storage.read_bytes(url))
    except safetensors.SafetensorError as error:
        raise ArtifactError(f"{without_credentials(url)} is not a safetensors file ({error})") from None


def save_model(module: SequenceEncoder, folder: Path, *, items_url: str) -> None:
    """Write `model.safetensors`, `config.json` and `items.parquet` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(dict(module.named_parameters()), folder / "model.safetensors")
    config = {"num_items": module.num_items, **module.config.__dict__}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (folder / "items.parquet").write_bytes(storage.read_bytes(items_url))


def load_model(url: str) -> SequenceEncoder:
    """Load a model in eval mode from its folder, or from its artifact, which is then verified.

    Raises ArtifactError if there is no model, it was altered, or its tensors do not fit its configuration.
    """
    url = model_folder(url)
    try:
        settings = json.loads(storage.read_bytes(storage.join(url, "config.json")))
        stored = load_tensors(storage.join(url, "model.safetensors"))
        parameters = {name: value.float() for name, value in stored.items()}  # as all layers are, without a copy
        return SequenceEncoder.of(settings.pop("num_items"), EncoderConfig(**settings), parameters)
    except MissingError:
        raise ArtifactError(
            f"no model at {without_credentials(url)}, which has no config.json or model.safetensors: name a folder in "
            "train/ or merge/ of an output, or an output whose run has ended"
        ) from None
    except (ConfigError, RuntimeError, TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"the model at {without_credentials(url)} cannot be read: {first_line(error)}") from None


def model_folder(url: str) -> str:
    """The folder with the model files: the URL itself, or `model/` of the artifact there, which is verified."""
    url = storage.absolute(url)
    for artifact in (url, url.rpartition("/")[0]):
        if storage.exists(storage.join(artifact, storage.LAST_FILE)):
            open_artifact(artifact, *MODEL_STAGES)
    return storage.join(url, "model") if storage.exists(storage.join(url, "model")) else url


def load_diagonal(url: str) -> dict[str, Tensor]:
    """Load a Fisher diagonal from its artifact: float32 by parameter name, the mean over users, not scaled further.

    Raises ArtifactError if there is none or a file was altered.
    """
    return load_tensors(open_artifact(url, "fisher").file(DIAGONAL_FILE))
