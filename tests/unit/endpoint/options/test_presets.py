"""Files that `oncue endpoint configure` writes: complete, valid, and honest about what is missing."""

from __future__ import annotations

import re

import pytest

from oncue.endpoint.options.file import PLACEHOLDER, parse_options
from oncue.endpoint.options.options import BlockOptions, EndpointOptions, LimitOptions, NetworkOptions, WorkerOptions
from oncue.endpoint.options.presets import COMMANDS, PRESETS, detect, placeholders, preset_text
from oncue.endpoint.options.providers import PbsProOptions, kind_of
from oncue.endpoint.providers.jobs import JobRequest
from oncue.endpoint.providers.pbs import PbsPro
from oncue.errors import EndpointFileError, Invalid

KINDS = ("local", "slurm", "pbspro", "torque", "lsf", "gridengine", "condor", "kubernetes", "parsl")
SITES = {"polaris": "pbspro", "aurora": "pbspro", "perlmutter": "slurm", "frontier": "slurm"}


def completed(preset: str) -> EndpointOptions:
    return parse_options(preset_text(preset, "lab").replace(PLACEHOLDER, "mine"), "endpoint.yaml")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_a_valid_file_once_it_is_completed(preset: str) -> None:
    options = completed(preset)

    assert kind_of(options.provider) == SITES.get(preset, preset)
    assert "endpoint lab" in preset_text(preset, "lab")
    assert len(max(preset_text(preset, "lab").splitlines(), key=len)) <= 110


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_that_is_not_completed_is_refused_with_the_place(preset: str) -> None:
    text = preset_text(preset, "lab")

    lines = placeholders(text)
    assert bool(lines) == (preset in {*SITES, "kubernetes", "parsl"})
    if lines:
        with pytest.raises(EndpointFileError, match=f"is still {PLACEHOLDER}") as e:
            parse_options(text, "endpoint.yaml")
        assert [p["line"] for p in e.value.details["problems"]] == lines


@pytest.mark.parametrize("preset", KINDS)
def test_each_key_is_explained(preset: str) -> None:
    text, options = preset_text(preset, "lab"), completed(preset)
    structs = [options, options.provider]
    if preset != "local":
        structs += [BlockOptions(), WorkerOptions(per_node=1), LimitOptions(), NetworkOptions()]

    keys = {name for s in structs for name in s.__struct_encode_fields__}
    if preset == "local":
        keys -= {"blocks", "limits", "network"}  # of batch jobs
    assert not [key for key in keys if not re.search(rf"\b{key}\b", text)]


@pytest.mark.parametrize("preset", KINDS)
def test_a_commented_default_may_be_uncommented(preset: str) -> None:
    lines = preset_text(preset, "lab").replace(PLACEHOLDER, "mine").splitlines()
    commented = [n for n, line in enumerate(lines) if re.match(r" *# [a-z_]+: [^|]*$", line)]
    assert commented

    for n in commented:
        key = lines[n].strip("# ").split(":")[0]
        others = [m for m, line in enumerate(lines) if re.match(rf" *{key}: ", line)]  # it is in force already
        changed = [line for m, line in enumerate(lines) if m not in others]
        changed[n - sum(m < n for m in others)] = lines[n].replace("# ", "", 1)
        parse_options("\n".join(changed), f"line {n + 1}")


@pytest.mark.parametrize("site", SITES)
def test_a_site_names_the_pages_that_its_values_are_from(site: str) -> None:
    text = preset_text(site, "lab")

    assert re.search(r"from public pages \(copies, seen on \d+ \w+ \d{4}\), not from a run", text)
    assert len(re.findall(r'^#   [\w, ]+: +.*(?:"|Globus Compute)', text, re.MULTILINE)) >= 3


@pytest.mark.parametrize("site", [site for site, kind in SITES.items() if kind == "pbspro"])
def test_a_chunk_of_pbs_names_each_resource_once(site: str) -> None:
    provider = completed(site).provider
    assert isinstance(provider, PbsProOptions)

    (select,) = [d for d in PbsPro(provider).directives(JobRequest("m", "true")) if "select=" in d]

    names = [part.partition("=")[0] for part in select.partition("select=")[2].split(":")]
    assert len(set(names)) == len(names), select


@pytest.mark.parametrize(
    ("given", "key"), [("ngpus=4", "gpus_per_node"), ("a=b:ncpus=64", "cores_per_node"), ("mem=1gb", "memory_per_node")]
)
def test_a_resource_of_a_chunk_that_is_given_twice_is_refused(given: str, key: str) -> None:
    text = f"provider: {{kind: pbspro, select_options: '{given}', {key}: 4}}"

    with pytest.raises(EndpointFileError, match=f"is given already by {key}"):
        parse_options(text, "endpoint.yaml")


def test_an_unknown_preset_names_the_others() -> None:
    with pytest.raises(Invalid, match="there is no preset 'slrum'") as e:
        preset_text("slrum", "lab")
    assert "slurm" in e.value.remedy


def test_the_scheduler_of_the_machine_is_found() -> None:
    assert detect(lambda command: None) == "local"
    for command, preset in COMMANDS.items():
        assert detect({command: "/usr/bin/x"}.get) == preset
