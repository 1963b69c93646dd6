"""Settings of the C library's memory allocator, for runs on a CPU."""

import ctypes
import sys

_LEAST_RETURNED = 2**29
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_KEPT_BYTES = 2**31 - 1


def _libc(device: str) -> ctypes.CDLL | None:
    """The C library where tensors are on the CPU of a Linux system."""
    return ctypes.CDLL(None) if device == "cpu" and sys.platform.startswith("linux") else None


def reuse_freed_memory(device: str = "cpu") -> None:
    """Let glibc keep up to 2 GiB of freed memory for later allocations, large blocks included.

    By default glibc returns every large block to the system, which clears each of its pages when it is allocated again:
    that was measured to take 7 to 13 % of the time of a policy update, against 2 % more memory. Does nothing
    on systems without glibc or where tensors are on another `device`.
    """
    mallopt = getattr(_libc(device), "mallopt", None)
    if mallopt is not None and mallopt(_M_MMAP_MAX, 0):
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


class _MallocInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks")
    ] + [("keepcost", ctypes.c_size_t)]


def return_freed_memory(device: str = "cpu") -> None:
    """Give freed memory back to the system if it is 512 MiB or more.

    Memory freed by sampling is in pieces that the update cannot use, and the other way round; if it were kept, the peak
    of a run would be nearly the sum of the two. Does nothing with less freed memory, a glibc before 2.33, or where
    tensors are on another `device`.
    """
    library = _libc(device)
    info, trim = getattr(library, "mallinfo2", None), getattr(library, "malloc_trim", None)
    if info is not None and trim is not None:
        info.restype = _MallocInfo
        if info().fordblks >= _LEAST_RETURNED:
            trim(0)
