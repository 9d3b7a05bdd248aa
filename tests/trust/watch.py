"""An audit hook (PEP 578) that notes what no command of medquant may do to files, programs and connections."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from attack import Arguments, Ground

_NEVER = frozenset(
    {"pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn"} | {"socket.connect", "socket.bind"}
)
_PROGRAMS = ("git", Path(sys.executable).name)
"""What medquant itself starts: git for the state of its checkout, and Python to measure memory."""

# Event: where its arguments name what is changed, and the folder's descriptor that the name counts from (0: none).
_CHANGING: Mapping[str, tuple[tuple[int, int], ...]] = {
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.chmod": ((0, 2),),
    "os.truncate": ((0, 0),),
    "os.symlink": ((1, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)),
}


def outputs(ground: Ground, arguments: Arguments) -> list[Path]:
    """Where the command may write: the run it continues, or its output folder."""
    return [Path(str(arguments[-1]))] if "--resume" in arguments else [ground.out, ground.out.with_name("out.part")]


class Watch:
    """Notes forbidden events; it raises nothing, so that the command behaves as it would."""

    def __init__(self, ground: Ground, arguments: Arguments, noted: list[str]) -> None:
        self._noted = noted
        places = [*outputs(ground, arguments), ground.folder / "cache"]
        self._writable = [place.parent.resolve() / place.name for place in places] + [Path("/dev/null"), Path("/proc/self").resolve()]
        self._outside = ground.outside.resolve()

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        if event == "open":
            self._opened(*args[:3])
        elif event in _NEVER:
            self._noted.append(f"{event} {args!r}"[:300])
        elif event == "subprocess.Popen":
            command = args[1]
            if not (isinstance(command, list) and Path(str(command[0])).name in _PROGRAMS):
                self._noted.append(f"{event} {args!r}"[:300])
        elif event in _CHANGING:
            for place, folder in _CHANGING[event]:
                self._changed(event, args[place], args[folder] if folder else -1)

    def _opened(self, path: object, _: object, flags: object) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self._changed("open", path)
        elif Path(os.path.realpath(os.fsdecode(path))).is_relative_to(self._outside):
            self._noted.append(f"read {os.fsdecode(path)!r}")

    def _changed(self, event: str, path: object, descriptor: object = -1) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        name = Path(os.fsdecode(path))
        if isinstance(descriptor, int) and descriptor >= 0:
            # Named by its folder, as rmtree does.
            name = Path(f"/proc/self/fd/{descriptor}").readlink() / name
        # The folder's links are followed; the last part is what is made, replaced or removed itself, unless it is opened.
        real = Path(os.path.realpath(name)) if event == "open" else Path(os.path.realpath(name.parent)) / name.name
        if not any(real.is_relative_to(place) for place in self._writable):
            self._noted.append(f"{event} {os.fsdecode(path)!r}")
