"""Kafka's jars in a cache folder, fetched once by Maven: 43 MB, about 7 s."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.services import Missing

POM = Path(__file__).with_name("pom.xml")
JAVA = 17


def version() -> str:
    found = re.search(r"<kafka\.version>(.+?)</kafka\.version>", POM.read_text())
    assert found, "pom.xml names Kafka's version"
    return found[1]


def cache() -> Path:
    """Return ONCUE_KAFKA_JARS, or a folder of this version in the user's cache."""
    given = os.environ.get("ONCUE_KAFKA_JARS")
    if given:
        return Path(given)
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "oncue" / f"kafka-{version()}"


def java() -> str:
    """Return the path of java. Raises Missing."""
    home = os.environ.get("JAVA_HOME")
    program = str(Path(home, "bin", "java")) if home else shutil.which("java")
    remedy = f"install Java {JAVA} or later (Debian: apt-get install default-jre-headless maven)"
    if not program or not Path(program).exists():
        raise Missing(f"there is no java: {remedy}")
    done = subprocess.run([program, "-version"], capture_output=True, text=True, check=False)
    found = re.search(r'version "(?:1\.)?(\d+)', done.stderr)
    if found is None or int(found[1]) < JAVA:
        raise Missing(f"{program} is not Java {JAVA} or later: {remedy}")
    return program


def jars() -> Path:
    """Return the folder with the jars; fetch them if it does not exist.

    One process at a time fetches, and the folder appears only when it is complete. Raises Missing.
    """
    folder = cache()
    if folder.is_dir():
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        raise Missing(f"there is no mvn to fetch Kafka's jars into {folder}: apt-get install maven")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        with tempfile.TemporaryDirectory(prefix="kafka-", dir=folder.parent) as half:
            command = [maven, "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", "-DincludeScope=runtime"]
            done = subprocess.run(
                [*command, f"-DoutputDirectory={half}/jars"], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise Missing(f"Maven could not fetch Kafka's jars: {(done.stdout + done.stderr)[-2000:]}")
            Path(half, "jars").rename(folder)
    return folder
