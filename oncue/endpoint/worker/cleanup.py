"""Restores what a task may change in its process for the next task.

Reading everything back after each task would cost more than the task. So the functions that change
a setting are wrapped, and only what was touched is compared (settings.py). Attributes that anybody
may assign are looked at after each task if that is cheap, the others after tasks of some length.
"""

from __future__ import annotations

import builtins
import contextlib
import contextvars
import functools
import locale
import os
import sys
import threading
import warnings
from collections.abc import Callable
from operator import itemgetter
from typing import Any

from oncue.endpoint.worker.late_settings import EVENT_LOOP, START_METHOD, imported, late_settings
from oncue.endpoint.worker.settings import FINAL, SETTINGS, Setting, unread
from oncue.functions.load import Loaded

_HOOKS = ("stdout", "stderr", "stdin", "excepthook", "displayhook", "argv", "path")
_hooks_of = itemgetter(*_HOOKS)
_system = vars(sys)
#: Attributes that are compared after a task of some length, and after each chunk.
_ASSIGNED = [
    (vars(module), names, itemgetter(*names))
    for module, names in (
        (sys, ("unraisablehook", "breakpointhook", "meta_path", "path_hooks", "modules", "dont_write_bytecode")),
        (sys, ("__stdin__", "__excepthook__", "__displayhook__", "__unraisablehook__", "warnoptions")),
        (threading, ("excepthook", "__excepthook__")),
        (warnings, ("showwarning", "formatwarning", "filters")),
        (os, ("environ", "environb")),
    )
]
_ABSENT: Any = object()
_DIRECTORY = "directory"


class Saved:
    """The state of the process in which a function's tasks begin."""

    def __init__(self, values: dict[str, Any], context: contextvars.Context, home: str) -> None:
        self.values = values  # by the setting's name
        self.home = home  # working directory
        self.context = context  # of which each task has a copy
        self.path, self.argv, self.finders = list(sys.path), list(sys.argv), list(sys.meta_path)
        self.hooks = _hooks_of(_system)
        self.assigned = [get(attributes) for attributes, _, get in _ASSIGNED]
        self.builtins = dict(vars(builtins))
        self.decimal = _decimal_context(context)

    def restore_decimal(self) -> None:
        if self.decimal is not None:
            self.context.run(sys.modules["decimal"].setcontext, self.decimal.copy())


def _decimal_context(context: contextvars.Context) -> Any:
    """Return a copy of the decimal context that an import has set; None if none has."""
    decimal = imported("decimal")
    if decimal is None:
        return None
    one, two = (context.copy().run(decimal.getcontext) for _ in range(2))
    return one.copy() if one is two else None


class Cleanup:
    """The state to restore, and what a task has touched of it."""

    def __init__(self, at_home: str) -> None:
        self.touched: set[str] = set()  # names of settings
        self.worn = False  # something cannot be restored
        self._chdir = os.chdir
        self._settings: dict[str, Setting] = {}
        self._unwatched: list[Setting] = []
        self._late = late_settings()
        self._modules = 0  # imported when late settings were looked for
        self._events: Any = None  # the module asyncio.events, once it is imported
        # os.environ's methods look putenv up in os; contextlib.chdir looks chdir up there.
        directory = Setting(_DIRECTORY, unread, lambda _: self.go_home(), ((os, ("chdir", "fchdir")),))
        for setting in (directory, *SETTINGS):
            self._add(setting)
        for module, names in FINAL:
            for name in names:
                self._watch(module, name, "", final=True)
        self._add_late()
        self.fresh = self.saved = Saved(self._read(), contextvars.Context(), at_home)

    # ------------------------------------------------------------ functions

    def load(self, load: Callable[[], Loaded]) -> Loaded:
        """Load a function in the fresh state; then save what its imports set up."""
        home = self.fresh.home
        self.use(self.fresh)
        context = self.fresh.context.copy()
        try:
            found: Loaded = context.run(load)
            home = found.home or (os.getcwd() if _DIRECTORY in self.touched else home)
        finally:
            self._add_late()
            unchanged = self.touched <= {"", _DIRECTORY} and not self._reassigned(self.fresh)
            self.saved = Saved(self.fresh.values if unchanged else self._read(), context, home)
            self.touched.clear()
            self.go_home()
        return found

    def use(self, saved: Saved) -> None:
        """Make another function's state the present one."""
        if saved is self.saved:
            return
        if saved.values is not self.saved.values:
            self.touched.update(self._settings)
        if saved.home != self.saved.home:
            self.touched.add(_DIRECTORY)
        self.saved = saved
        self.restore()
        self.look_closer()

    # ------------------------------------------------------------ tasks

    def changed(self) -> bool:
        """Return True if a task has changed something. Costs less than a system call."""
        try:
            return bool(
                self.touched
                or _hooks_of(_system) != self.saved.hooks
                or sys.path != self.saved.path
                or (self._events is not None and self._events._event_loop_policy is not None)
                or self.saved.decimal is not None
            )
        except KeyError:  # a hook was deleted
            return True

    def restore(self) -> None:
        """Restore what was touched.

        Called if `changed`, or if another function's tasks follow.
        """
        saved = self.saved
        if self._events is not None:
            self.touched.add(EVENT_LOOP)
        for name in list(self.touched):
            setting = self._settings.get(name)
            if setting is not None:
                self._write(setting, saved.values.get(name, setting.fresh))
        for name, hook in zip(_HOOKS, saved.hooks, strict=True):
            if _system.get(name, _ABSENT) is not hook:
                setattr(sys, name, hook)
        sys.path[:] = saved.path
        saved.restore_decimal()
        self.touched.clear()

    def _write(self, setting: Setting, value: Any) -> None:
        try:
            if value is None or setting.read() != value:
                setting.write(value)
        except (OSError, ValueError, locale.Error):
            self.worn = True

    def _reassigned(self, saved: Saved) -> list[Setting]:
        """Return the settings without a watched function that were changed."""
        return [s for s in self._unwatched if s.read() != saved.values.get(s.name, s.fresh)]

    def look_closer(self, whole: bool = True) -> None:
        """Restore attributes that were assigned. Costs some microseconds.

        `whole`: builtins too. What a task has added stays, for the modules that it has imported
        may need it.
        """
        saved = self.saved
        try:
            same = [get(attributes) for attributes, _, get in _ASSIGNED] == saved.assigned
        except KeyError:  # one was deleted
            same = False
        if not same:
            for (attributes, names, _), values in zip(_ASSIGNED, saved.assigned, strict=True):
                attributes.update(zip(names, values, strict=True))
        for setting in self._reassigned(saved):
            self._write(setting, saved.values.get(setting.name, setting.fresh))
        if "tracebacklimit" in _system:
            del sys.tracebacklimit
        if sys.argv != saved.argv:
            sys.argv[:] = saved.argv
        if sys.meta_path != saved.finders:
            sys.meta_path.extend(f for f in saved.finders if f not in sys.meta_path)
        if whole and vars(builtins) != saved.builtins:
            vars(builtins).update(saved.builtins)
            saved.builtins = dict(vars(builtins))
        if whole and START_METHOD in self._settings:
            self.touched.add(START_METHOD)
        if len(sys.modules) != self._modules:
            self._add_late()

    def go_home(self) -> None:
        """Enter the working directory; make it anew if a task has removed it."""
        try:
            self._chdir(self.saved.home)
        except OSError:
            with contextlib.suppress(OSError):
                os.makedirs(self.saved.home, exist_ok=True)
                self._chdir(self.saved.home)

    def at_home(self) -> bool:
        try:
            return os.getcwd() == self.saved.home
        except OSError:  # removed
            return False

    # ------------------------------------------------------------ watching

    def _read(self) -> dict[str, Any]:
        return {name: setting.read() for name, setting in self._settings.items()}

    def _add(self, setting: Setting) -> None:
        self._settings[setting.name] = setting
        if not setting.watched and setting.name != EVENT_LOOP:  # which `restore` always compares
            self._unwatched.append(setting)
        for module, names in setting.watched:
            for name in names:
                self._watch(module, name, setting.name)

    def _add_late(self) -> None:
        """Watch settings of modules imported meanwhile: they count as touched."""
        self._modules = len(sys.modules)
        for name in [n for n in self._late if n in sys.modules]:
            module = imported(name)
            if module is None:
                continue
            setting = self._late.pop(name)(module)
            self._add(setting)
            self.touched.add(setting.name)
            if name == "asyncio.events":
                self._events = module

    def _watch(self, module: Any, name: str, setting: str, final: bool = False) -> None:
        real: Callable[..., Any] | None = getattr(module, name, None)
        if real is None:  # not on this system, or not in this Python
            return

        @functools.wraps(real)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.touched.add(setting)
            result = real(*args, **kwargs)
            self.worn = self.worn or final
            return result

        # The name by which pickles find it: a pool's initializer may be one of these.
        watched.__module__, watched.__qualname__ = module.__name__, name
        setattr(module, name, watched)
