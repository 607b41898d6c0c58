"""File systems and nodes that are not at hand, by a library in front of libc: locks that do not exist or hold nobody
back, no fsync, other host names.
"""

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

NODE_LOCAL = 0  # flock that succeeds and keeps nobody out, as those of two nodes do on Lustre with localflock

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

/* The variable is the errno; 0: it succeeds and does nothing; unset: the real call. */
#define INSTEAD(variable) do { const char *value = getenv(variable); \
    if (value) { if (!*value || !strcmp(value, "0")) return 0; errno = atoi(value); return -1; } } while (0)
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
int fsync(int), fdatasync(int), flock(int, int);

int flock(int fd, int operation) { INSTEAD("SHIM_FLOCK"); return REAL(flock)(fd, operation); }
int fsync(int fd) { INSTEAD("SHIM_FSYNC"); return REAL(fsync)(fd); }
int fdatasync(int fd) { INSTEAD("SHIM_FSYNC"); return REAL(fdatasync)(fd); }
int uname(struct utsname *found)
{
    int status = REAL(uname)(found);
    const char *node = getenv("SHIM_NODE");
    if (node) {
        memset(found->nodename, 0, sizeof found->nodename);
        strncpy(found->nodename, node, sizeof found->nodename - 1);
    }
    return status;
}
"""


@functools.cache
def _library() -> Path | None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    folder = Path(tempfile.mkdtemp())
    (folder / "shim.c").write_text(SOURCE)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", folder / "shim.so", folder / "shim.c", "-ldl"], check=True
    )
    return folder / "shim.so"


def shimmed(*, flock: int | None = None, fsync: int | None = None, node: str | None = None) -> dict[str, str]:
    """The environment of a process for which calls are as given: errno, or 0 for one that succeeds and does nothing."""
    library = _library()
    if library is None:
        pytest.skip("there is no C compiler (gcc, cc), so file systems without locks are NOT tested here")
    given = {"SHIM_FLOCK": flock, "SHIM_FSYNC": fsync, "SHIM_NODE": node}
    return (
        os.environ
        | {"LD_PRELOAD": str(library)}
        | {name: str(value) for name, value in given.items() if value is not None}
    )
