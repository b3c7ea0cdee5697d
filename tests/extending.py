"""Imports the code blocks of docs/extending.md as modules, so that tests run what the page shows."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def module(name: str) -> ModuleType:
    """Return the block of the page whose first line is `# name.py`, as the module `name`."""
    if name in sys.modules:
        return sys.modules[name]
    found = re.search(rf"^```python\n(# {name}\.py\n.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"{PAGE.name} has no block {name}.py"
    made = ModuleType(name)
    sys.modules[name] = made  # msgspec looks up annotations there
    exec(compile(found[1], f"{PAGE.name}:{name}.py", "exec"), made.__dict__)
    return made
