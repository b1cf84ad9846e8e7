"""Tools: WebAssembly modules that an agent may call (CALL), run by wasmtime inside the supervisor.

Not for deciding anything: whether a tool may be called, and every effect of its host calls, is asked of the kernel.
"""
