"""Build Kubernetes for its tests (`make kubernetes`)."""

from __future__ import annotations

import sys

from tests.kubernetes.binaries import VERSION, build, cache, programs
from tests.services import Missing


def main() -> int:
    try:
        if not cache().is_dir():
            print(f"building Kubernetes {VERSION} into {cache()} ...", flush=True)
        build()
        programs()
    except Missing as e:
        print(f"no Kubernetes: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
