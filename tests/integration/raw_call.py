"""The head of a program that makes authority calls by their raw numbers, with whatever registers a test wants."""

RAW = r"""
import ctypes, json
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def raw(nr, args, cap=65536, req=None, resp=None, agent=0, size=None, flags=0):
    body = json.dumps(args).encode()
    buf = ctypes.create_string_buffer(max(cap, 1))
    n = libc.syscall(ctypes.c_long(nr), ctypes.c_void_p(agent), ctypes.c_void_p(req) if req is not None else body,
                     ctypes.c_size_t(len(body) if size is None else size),
                     ctypes.c_void_p(ctypes.addressof(buf) if resp is None else resp), ctypes.c_size_t(cap),
                     ctypes.c_ulong(flags))
    return n if n >= 0 else -ctypes.get_errno(), buf.raw[:max(n, 0)] if n >= 0 else buf.value
"""
