"""Simulates Python on Windows for this package: without the modules, functions and signals of POSIX systems. Other
packages keep them.
"""

from __future__ import annotations

import builtins
import importlib
import multiprocessing
import os
import pkgutil
import select
import signal
import socket
import sys
from types import ModuleType
from typing import Any

from tests.forked import piti

MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
NAMES = {
    os: """O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_SYNC chown chroot confstr fchmod fchown fdatasync fork forkpty
        fpathconf fstatvfs getegid geteuid getgid getgroups getloadavg getpgid getpgrp getpriority getsid getuid
        getxattr killpg lchown lockf memfd_create mkfifo mknod nice openpty pathconf pipe2 posix_fadvise
        posix_fallocate posix_spawn pread preadv pwrite pwritev readv register_at_fork sched_getaffinity
        sched_setaffinity sched_yield sendfile setgid setpgid setpgrp setpriority setsid setuid statvfs sync sysconf
        ttyname uname wait wait3 wait4 waitid writev""",
    select: "epoll kqueue poll",
    signal: """SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2 SIGWINCH SIG_BLOCK
        SIG_SETMASK SIG_UNBLOCK alarm getitimer pause pthread_kill pthread_sigmask setitimer siginterrupt sigpending
        sigtimedwait sigwait sigwaitinfo""",
    socket: "AF_UNIX SO_REUSEPORT socketpair",
}


def on_windows() -> None:
    """From now on modules of the package that are imported find no more than there."""
    others = {module.__name__: _without(module, set(names.split())) for module, names in NAMES.items()}
    others["os"].name = "nt"  # type: ignore[attr-defined]
    everywhere = builtins.__import__

    def importing(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> ModuleType:
        if str((globals or {}).get("__name__")).partition(".")[0] == "piti":
            if name in MODULES:
                raise ModuleNotFoundError(f"No module named '{name}'", name=name)
            if name in others:
                return others[name]
        return everywhere(name, globals, locals, fromlist, level)

    for name in [name for name in sys.modules if name.partition(".")[0] == "piti"]:
        del sys.modules[name]
    builtins.__import__ = importing


def _without(module: ModuleType, names: set[str]) -> ModuleType:
    other = ModuleType(module.__name__, module.__doc__)
    other.__dict__.update({name: value for name, value in vars(module).items() if name not in names})
    return other


def everything(photographs: str, out: str) -> None:
    """Import every module there, then draw photographs by two processes; what was imported is written out."""
    on_windows()
    package = importlib.import_module("piti")
    for module in pkgutil.walk_packages(package.__path__, "piti."):
        if module.name != "piti.__main__":
            importlib.import_module(module.name)
    sys.stdout.write("\n".join(name for name in sys.modules if name.startswith("piti")) + "\n")
    forked = multiprocessing.get_context("fork")  # which finds as little as this process
    multiprocessing.get_context = lambda method=None: forked  # type: ignore[assignment]
    piti("prepare", "sketch", photographs, out, "--processes", "2")
