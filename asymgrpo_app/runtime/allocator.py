"""Settings of the C library's memory allocator, for runs on a CPU."""

import ctypes
import sys

_LEAST_RETURNED = 2**29
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_KEPT_BYTES = 2**31 - 1


def reuse_freed_memory(device: str = "cpu") -> bool:
    """Let glibc keep up to 2 GiB of freed memory for later allocations, large blocks included.

    By default glibc returns every large block to the system, which clears each of its pages when it is allocated again:
    that was measured to take 7 to 13 % of the time of a policy update, against 2 % more memory. Does nothing, and
    returns False, on systems without glibc or where tensors are on another `device`.
    """
    if device != "cpu" or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))


class _MallocInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks")
    ] + [("keepcost", ctypes.c_size_t)]


def return_freed_memory(device: str = "cpu") -> bool:
    """Give freed memory back to the system if it is 512 MiB or more.

    Memory freed by sampling is in pieces that the update cannot use, and the other way round; if it were kept, the peak
    of a run would be nearly the sum of the two. Does nothing, and returns False, with less freed memory, a glibc before
    2.33, or where tensors are on another `device`.
    """
    if device != "cpu" or not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    info, trim = getattr(library, "mallinfo2", None), getattr(library, "malloc_trim", None)
    if info is None or trim is None:
        return False
    info.restype = _MallocInfo
    return info().fordblks >= _LEAST_RETURNED and bool(trim(0))
