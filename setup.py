"""Builds the one C extension; everything else about the distribution is in pyproject.toml."""

from pathlib import Path

from setuptools import Extension, setup

# -Werror belongs to this project's own checks (scripts/test sets it): a user's newer compiler must not break an install.
FLAGS = ["-std=c11", "-O2", "-g", "-Wall", "-Wextra", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2", "-D_GNU_SOURCE"]

setup(
    ext_modules=[
        Extension(
            "akbox._native",
            sources=sorted(str(p) for p in Path("native").glob("*.c")),
            depends=sorted(str(p) for p in Path("native").glob("*.h")),
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=FLAGS,
            extra_link_args=["-pthread", "-Wl,-z,relro,-z,now"],
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
