"""What of the agent's environment the workers get."""

from __future__ import annotations

import pytest

from oncue.endpoint.pool.environment import worker_environment


@pytest.mark.parametrize(
    "name",
    [
        "ONCUE_TOKEN",
        "ONCUE_SECRET_HOOK",
        "ONCUE_KAFKA_PASSWORD",
        "GITHUB_TOKEN",
        "HF_TOKEN",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "PGPASSWORD",
        "MYSQL_PWD_FILE",
        "DB_PASS",
        "OPENAI_API_KEY",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "CREDENTIALS_DIRECTORY",
        "SENTRY_DSN",
        "SSH_AUTH_SOCK",
        "NOTIFY_SOCKET",
        "SLURM_JWT",
        "db_password",
    ],
)
def test_secrets_are_left_out(name: str) -> None:
    assert worker_environment({name: "x", "PATH": "/bin"}) == {"PATH": "/bin"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PATH", "/bin"),
        ("LD_LIBRARY_PATH", "/opt/lib"),
        ("SLURM_JOB_ID", "7"),
        ("CUDA_VISIBLE_DEVICES", "0"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("KEYBOARD", "de"),
        ("MONKEYS", "3"),
        ("PWD", "/"),
        ("https_proxy", "http://me:pw@proxy:3128"),
        ("KRB5CCNAME", "/tmp/krb5cc"),
        ("COMPASS", "n"),
    ],
)
def test_other_variables_are_passed(name: str, value: str) -> None:
    assert worker_environment({name: value}) == {name: value}


def test_a_url_with_a_password_is_left_out() -> None:
    assert worker_environment({"DATABASE_URL": "postgres://me:pw@host/db", "HOME_URL": "https://host/a:b"}) == {
        "HOME_URL": "https://host/a:b"
    }


def test_named_variables_are_passed_but_never_those_of_oncue() -> None:
    environ = {"HF_TOKEN": "x", "ONCUE_TOKEN": "y", "DB_PASS": "z"}
    assert worker_environment(environ, ["HF_*", "ONCUE_*"]) == {"HF_TOKEN": "x"}
