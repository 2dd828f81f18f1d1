"""Where runs are recorded, and which parts of a configuration and its URLs may be written there."""

import json
import os
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymerge.errors import ConfigError
from raymerge.redaction import redact
from raymerge.tracking import store


def test_an_explicit_uri_precedes_the_environment_and_that_the_output_folder(tmp_path: Path) -> None:
    assert store.resolve_uri("http://a:5000", "http://b:5000", "out") == "http://a:5000"
    assert store.resolve_uri(None, "http://b:5000", "s3://bucket/out") == "http://b:5000"
    assert store.resolve_uri(None, None, str(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"
    assert store.resolve_uri(None, "", f"file://{tmp_path}") == f"sqlite:///{tmp_path}/mlflow.db"


def test_a_relative_database_becomes_absolute() -> None:
    assert store.resolve_uri("sqlite:///runs.db", None, "out") == f"sqlite:///{os.getcwd()}/runs.db"


def test_a_remote_output_needs_a_server() -> None:
    with pytest.raises(ConfigError, match=r"s3://bucket/out is not on this machine.*--tracking-uri"):
        store.resolve_uri(None, None, "s3://me:hunter2@bucket/out")


@pytest.mark.parametrize("uri", ["mlruns", "file:///runs", "htp://host"])
def test_a_store_that_mlflow_does_not_support_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="neither a server nor a database"):
        store.resolve_uri(uri, None, "out")


def test_the_ui_command_opens_the_store_without_its_password() -> None:
    assert store.ui_command("sqlite:////out/mlflow.db").endswith("ui --backend-store-uri sqlite:////out/mlflow.db")
    assert store.ui_command("http://me:hunter2@host:5000").endswith("-m webbrowser http://host:5000")


NAMES = st.text(string.ascii_lowercase, min_size=1, max_size=8)
PASSWORDS = st.text(string.ascii_letters + string.digits + ":!$%&*+=~.-/?'", min_size=4, max_size=12)


@settings(max_examples=50, deadline=None)
@given(NAMES, PASSWORDS, NAMES)
def test_redaction_removes_user_password_and_query_from_urls_in_any_text(user: str, password: str, host: str) -> None:
    text = f"failed: https://{user}:{password}@{host}.org:80/a?sig=0123 and s3://{user}:{password}@{host}/b"
    assert redact(text) == f"failed: https://{host}.org:80/a and s3://{host}/b"


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | NAMES | st.lists(st.integers(), max_size=3),
    lambda children: st.dictionaries(NAMES, children, min_size=1, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(NAMES, TREES, max_size=3))
def test_flattening_keeps_each_leaf_under_its_dotted_path(tree: dict) -> None:
    for path, value in store.flatten(tree).items():
        leaf = tree
        for key in path.split("."):
            leaf = leaf[key]
        assert value == (leaf if isinstance(leaf, str) else json.dumps(leaf))


def test_secrets_are_masked_and_odd_characters_replaced() -> None:
    flat = store.flatten({"storage": {"secret_key": "hunter2", "token": "hunter2", "k@y!": 1}, "password": None})
    assert flat == {"storage.secret_key": "***", "storage.token": "***", "storage.k_y_": "1", "password": "null"}
