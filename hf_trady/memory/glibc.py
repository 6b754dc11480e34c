"""Makes glibc's allocator give tensors back to the system when they are freed, so that peaks are those of tensors."""

import ctypes


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt
_RETURNED_FROM = 128 * 1024  # bytes; glibc's own initial threshold
_LARGEST_HOLE = 32 * 1024**2  # bytes; what is larger is mapped, and unmapped, from the start, unless told otherwise


class _MallInfo(ctypes.Structure):
    """What mallinfo2 returns."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def return_freed_memory() -> bool:
    """Make the C library give freed tensors back to the system at once; returns whether it could be told to.

    By itself glibc raises the size from which it does so up to 32 MiB, as large blocks are freed, and keeps what is
    smaller in a heap with holes: the peak of a step is then higher, and differs from run to run, as
    `benchmarks/memory.py` shows. The price is time, as the system clears each block anew; less where torch may ask for
    huge pages (`THP_MEM_ALLOC_ENABLE=1` in the environment).
    """
    libc = ctypes.CDLL(None)
    if not _set_thresholds(libc, _RETURNED_FROM, _RETURNED_FROM):
        return False
    libc.malloc_trim(0)
    if hasattr(libc, "mallinfo2"):
        _close_holes(libc)
    return True


def keep_freed_memory() -> None:
    """Undo `return_freed_memory`, and its price: glibc keeps freed blocks again, as it does by itself."""
    _set_thresholds(ctypes.CDLL(None), _LARGEST_HOLE, 2 * _LARGEST_HOLE)


def _set_thresholds(libc: ctypes.CDLL, mapped_from: int, trimmed_from: int) -> bool:
    """Set from how many bytes on a block is mapped by itself, and how many free ones at the end of the heap are given
    back. False without glibc."""
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        return False
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, mapped_from) and libc.mallopt(_M_TRIM_THRESHOLD, trimmed_from))


def _close_holes(libc: ctypes.CDLL) -> None:
    """Take the large holes that the heap has already out of use, for good; they cost addresses, not memory.

    glibc looks for a hole that fits before it asks the system for a block of its own, whatever the threshold. A tensor
    that lands in one is not given back when it is freed.
    """
    libc.mallinfo2.restype = _MallInfo
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    size, info = _LARGEST_HOLE, libc.mallinfo2()
    while size >= _RETURNED_FROM:
        block = libc.malloc(size) if info.fordblks >= size else None
        before, info = info, libc.mallinfo2()
        if block is None or info.hblks > before.hblks:  # it is not from the heap: no hole of this size is left
            libc.free(block)
            size, info = size // 2, libc.mallinfo2()
