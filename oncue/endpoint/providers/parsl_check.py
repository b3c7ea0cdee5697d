"""Check of the options of `kind: parsl` against Parsl itself."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable

from oncue.endpoint.options.providers import ParslOptions
from oncue.extras import HPC, missing, pip_install

#: Parameters of Parsl's classes that `endpoint.yaml` has keys of its own for.
OURS = {
    "nodes_per_block": "blocks.nodes",
    "walltime": "blocks.walltime",
    "init_blocks": "blocks.initial",
    "min_blocks": "blocks.min",
    "max_blocks": "blocks.max",
    "launcher": "provider.launcher",
    "worker_init": "provider.worker_init",
    "cmd_timeout": "provider.command_timeout",
}


def parsl_faults(options: ParslOptions) -> list[str]:
    """Return what Parsl would refuse, each with its remedy; [] if nothing is wrong."""
    if absent := missing(HPC):
        return [f"Parsl is not installed: {pip_install(absent)}"]
    import parsl.launchers
    import parsl.providers

    faults = []
    launchers = [name for name in vars(parsl.launchers) if name.endswith("Launcher")]
    if options.launcher not in launchers:
        faults.append(_unknown("launcher", options.launcher, launchers))
    if options.name not in parsl.providers.__all__:
        return [*faults, _unknown("name", options.name, parsl.providers.__all__)]
    parameters = inspect.signature(getattr(parsl.providers, options.name)).parameters
    own = [name for name in parameters if name not in OURS]
    for name in options.options:
        if name in OURS:
            faults.append(f"options.{name}: state it as {OURS[name]} instead")
        elif name not in own:
            faults.append(_unknown("options", name, own))
    needed = [name for name in own if parameters[name].default is inspect.Parameter.empty]
    return faults + [f"options: {options.name} needs {name}" for name in needed if name not in options.options]


def _unknown(key: str, name: str, known: Iterable[str]) -> str:
    """Return that Parsl does not know this name, with the nearest that it knows."""
    names = sorted(known)
    near = difflib.get_close_matches(name[:60], names, n=1)
    return f"{key}: Parsl has no {name[:60]!r}; " + (
        f"did you mean {near[0]}?" if near else f"it has {', '.join(names)}"
    )
