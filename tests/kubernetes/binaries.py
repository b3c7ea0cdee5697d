"""Kubernetes' programs in a cache folder, built once from its Go modules: 290 MB, 5 to 30 minutes."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import msgspec

from tests.services import Missing

VERSION = "1.35.4"
LIBRARIES = "0.35.4"  # k8s.io/api and the like, of the same release
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
REMEDY = "run `make kubernetes`"


def cache() -> Path:
    """Return ONCUE_KUBERNETES_PROGRAMS, or a folder of this version in the user's cache."""
    if given := os.environ.get("ONCUE_KUBERNETES_PROGRAMS"):
        return Path(given)
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "oncue" / f"kubernetes-{VERSION}"


def programs() -> Path:
    """Return the folder of the programs. Raises Missing if they are not built, or etcd is not here."""
    folder = cache()
    if not folder.is_dir():
        raise Missing(f"Kubernetes is not built (its tests are optional): {REMEDY}")
    for program in ("etcd", "openssl"):
        if shutil.which(program) is None:
            package = {"etcd": "etcd-server"}.get(program, program)
            raise Missing(f"{program} is not installed: apt-get install --no-install-recommends {package}")
    return folder


def build() -> Path:
    """Build the programs unless they are there. Raises Missing.

    One process at a time builds, and the folder appears only when it is complete.
    """
    folder = cache()
    go = shutil.which("go")
    if go is None and not folder.is_dir():
        raise Missing("there is no go to build Kubernetes with (1.25 or later)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(prefix="kubernetes-", dir=folder.parent) as half:
                _build(str(go), Path(half))
                Path(half, "bin").rename(folder)
    return folder


def _build(go: str, folder: Path) -> None:
    """Build in a module of our own: Kubernetes' requirements, with its libraries as published."""
    module = msgspec.json.decode(_run([go, "mod", "download", "-json", f"k8s.io/kubernetes@v{VERSION}"], folder))
    text = Path(module["GoMod"]).read_text().replace("module k8s.io/kubernetes", "module oncue.test/kubernetes", 1)
    text = re.sub(r"=> \./staging/src/(k8s\.io/\S+)", rf"=> \1 v{LIBRARIES}", text)
    (folder / "go.mod").write_text(f"{text}\nrequire k8s.io/kubernetes v{VERSION}\n")
    shutil.copy(Path(module["Dir"], "go.sum"), folder / "go.sum")
    versions = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    flags = " ".join(["-s -w", *(f"-X {name}.gitVersion=v{VERSION}" for name in versions)])
    packages = [f"k8s.io/kubernetes/cmd/{program}" for program in PROGRAMS]
    _run([go, "build", "-mod=mod", "-trimpath", "-ldflags", flags, "-o", f"{folder}/bin/", *packages], folder)


def _run(command: list[str], folder: Path) -> bytes:
    environ = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=mod"}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, check=False)
    if done.returncode:
        raise Missing(f"Kubernetes could not be built: {(done.stdout + done.stderr).decode(errors='replace')[-2000:]}")
    return done.stdout
