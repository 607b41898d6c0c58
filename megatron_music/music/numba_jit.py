"""The one owner of numba (the extra ``fast``): what makes a loop compiled code.

The first use on a machine compiles for some seconds; later ones load what was compiled from beside the file of the
loop.
"""

from numba import njit


def _can_keep() -> bool:
    """Whether there is a place to keep what is compiled; where there is none, each process compiles for itself."""
    try:
        njit(cache=True)(lambda: 0)
    except RuntimeError:  # numba found no folder it may write to
        return False
    return True


compiled = njit(cache=_can_keep(), nogil=True)
