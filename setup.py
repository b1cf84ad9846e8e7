"""Builds the one C extension and puts policies/, sdk/python and scripts/verify-log into the wheel.

The rest is in pyproject.toml.
"""

import os
import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

# A user's newer compiler must not break an install: warnings are errors in this project's own checks only.
FLAGS = ["-std=c11", "-O2", "-g", "-Wall", "-Wextra", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2"]
FLAGS.append("-D_GNU_SOURCE")
LINK = ["-pthread", "-Wl,-z,relro,-z,now"]
if os.environ.get("AKBOX_WERROR"):
    FLAGS.append("-Werror")
if os.environ.get("AKBOX_SANITIZE"):  # tests/unit/test_sanitizers.py
    FLAGS += [
        "-U_FORTIFY_SOURCE",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-fno-omit-frame-pointer",
    ]
    LINK += ["-fsanitize=address,undefined"]

SHIPPED = ("policies", "sdk/python", "scripts/verify-log")


class BuildWithData(build_py):
    """build_py, plus the shipped folders as akbox/_data/ (an editable install finds them in the checkout instead)."""

    def run(self) -> None:
        super().run()
        if getattr(self, "editable_mode", False):
            return
        for name in SHIPPED:
            target = Path(self.build_lib) / "akbox" / "_data" / name
            shutil.rmtree(target, ignore_errors=True)
            if Path(name).is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(name, target)
                continue
            shutil.copytree(name, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info"))


setup(
    cmdclass={"build_py": BuildWithData},
    ext_modules=[
        Extension(
            "akbox._native",
            sources=sorted(str(p) for p in Path("native").glob("*.c")),
            depends=sorted(str(p) for p in Path("native").glob("*.h")),
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=FLAGS,
            extra_link_args=LINK,
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
