"""Settings: file < environment < flags; what is misspelt is an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from oncue.config import load_settings
from oncue.errors import Invalid


def test_flags_before_environment_before_file(tmp_path: Path) -> None:
    (tmp_path / "oncue.toml").write_text("port = 1\nworkers = 1\nrate_per_s = 1.5\n")
    found = load_settings(
        {"port": 3, "host": None}, {"ONCUE_DATA": str(tmp_path), "ONCUE_PORT": "2", "ONCUE_WORKERS": "2"}
    )
    assert (found.port, found.workers, found.rate_per_s, found.host) == (3, 2, 1.5, "127.0.0.1")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("ONCUE_PROT", "ONCUE_PORT"),
        ("ONCUE_TOKN", "ONCUE_TOKEN"),
        ("ONCUE_RESULTS_RETENTION", "ONCUE_RESULTS_RETENTION_"),
    ],
)
def test_a_misspelt_variable_is_an_error(tmp_path: Path, name: str, near: str) -> None:
    with pytest.raises(Invalid, match=name) as caught:
        load_settings({}, {"ONCUE_DATA": str(tmp_path), name: "1"})
    assert near in caught.value.remedy


def test_variables_of_other_parts_are_none(tmp_path: Path) -> None:
    others = ("URL", "TOKEN", "DEBUG", "BLOBS", "SECRET_DAQ", "TEST_PYTHONS", "BENCH_DIR", "CHAOS_SEED")
    environ = {"ONCUE_DATA": str(tmp_path), "_ONCUE_COMPLETE": "bash_complete", "ONCUERT": "x"}
    assert load_settings({}, environ | {f"ONCUE_{name}": "1" for name in others}).port == 8765


def test_a_misspelt_line_of_the_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "oncue.toml").write_text("prot = 1\n")
    with pytest.raises(Invalid, match="prot") as caught:
        load_settings({}, {"ONCUE_DATA": str(tmp_path)})
    assert "port" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("workers", "-3"),
        ("workers", "1000000"),
        ("port", "-1"),
        ("port", "65536"),
        ("bridge_port", "70000"),
        ("max_body_bytes", "0"),
        ("max_batch", "0"),
        ("rate_per_s", "-0.5"),
        ("rate_per_s", "nan"),
        ("results_retention_days", "0"),
        ("events_retention_days", "-1"),
        ("reports_retention_days", "inf"),
        ("results_retention_bytes", "-1"),
        ("matches_partitions", "0"),
        ("events_partitions", "0"),
        ("task_topics", "-1"),
        ("queue_bytes", "0"),
        ("disk_stop_percent", "0"),
        ("disk_stop_percent", "100.5"),
    ],
)
def test_a_number_that_nothing_can_run_with_is_an_error(tmp_path: Path, name: str, value: str) -> None:
    variable = f"ONCUE_{name.upper()}"
    with pytest.raises(Invalid, match=variable) as caught:
        load_settings({}, {"ONCUE_DATA": str(tmp_path), variable: value})
    assert name in caught.value.remedy
    with pytest.raises(Invalid, match=f"--{name.replace('_', '-')}"):
        load_settings({name: float(value) if "days" in name else value}, {"ONCUE_DATA": str(tmp_path)})
    (tmp_path / "oncue.toml").write_text(f"{name} = {value}\n")
    with pytest.raises(Invalid, match=rf"oncue\.toml: {name}"):
        load_settings({}, {"ONCUE_DATA": str(tmp_path)})


def test_the_error_says_what_a_setting_may_be(tmp_path: Path) -> None:
    with pytest.raises(Invalid) as caught:
        load_settings({"port": 65_536}, {"ONCUE_DATA": str(tmp_path)})
    assert caught.value.remedy == "port is a whole number, at least 0, at most 65,535"
    with pytest.raises(Invalid) as caught:
        load_settings({"events_mode": "text"}, {"ONCUE_DATA": str(tmp_path)})
    assert caught.value.remedy == "events_mode is structured or binary"


@pytest.mark.parametrize("root", ["", ".", "data", "../data"])
def test_a_root_of_triggers_is_absolute(tmp_path: Path, root: str) -> None:
    """A relative one would mean the folder in which the server was started: / under systemd."""
    (tmp_path / "oncue.toml").write_text(f'trigger_roots = ["/data", "{root}"]\n')
    with pytest.raises(Invalid, match=r"oncue\.toml: trigger_roots") as caught:
        load_settings({}, {"ONCUE_DATA": str(tmp_path)})
    assert caught.value.remedy == "trigger_roots is a list of absolute paths"
    found = load_settings({}, {"ONCUE_DATA": str(tmp_path / "none"), "ONCUE_TRIGGER_ROOTS": "/data:~/raw"})
    assert found.trigger_roots == ("/data", "~/raw")


@pytest.mark.parametrize("proxy", ["", "proxy.lan", "10.0.0.1/8", "10.0.0.0/33", "0.0.0.0/0", "::/0", "10.0.0.1:80"])
def test_a_trusted_proxy_is_an_address_or_a_network(tmp_path: Path, proxy: str) -> None:
    (tmp_path / "oncue.toml").write_text(f'trusted_proxies = ["127.0.0.1", "{proxy}"]\n')
    with pytest.raises(Invalid, match=r"oncue\.toml: trusted_proxies") as caught:
        load_settings({}, {"ONCUE_DATA": str(tmp_path)})
    assert "trusted_proxies is a list of IP addresses and networks" in str(caught.value.remedy)
    found = load_settings({}, {"ONCUE_DATA": str(tmp_path / "none"), "ONCUE_TRUSTED_PROXIES": "10.0.0.0/8, fd00::1,"})
    assert found.trusted_proxies == ("10.0.0.0/8", "fd00::1")
