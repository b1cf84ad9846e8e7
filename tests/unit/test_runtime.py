"""What `runtime = "auto"` grants, and what it must not."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from akbox.linux import elf, runtime
from akbox.linux.errors import CannotRun
from akbox.linux.interpreters import installation
from akbox.linux.runtime import EXEC, READ, find_program, runtime_needs
from akbox.policy.compile import Context, compile_policy
from akbox.policy.load import parse

ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin"}


def script(path: Path, first_line: str, mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{first_line}\n")
    path.chmod(mode)
    return path


def needs(argv: list[str], cwd: Path | str = "/", env: dict[str, str] = ENV) -> dict[str, int]:
    return {grant.pattern: grant.need for grant in runtime_needs(argv, str(cwd), env, "auto").grants}


def prefix(command: str) -> str:
    return runtime_needs([command], "/", ENV, "auto").prefix


def code(name: str, cwd: Path, path: str) -> int:
    with pytest.raises(CannotRun) as caught:
        find_program(name, str(cwd), path)
    return caught.value.exit_code


def test_execvp_order_and_exit_codes(tmp_path: Path) -> None:
    first = script(tmp_path / "a/tool", "#!/bin/sh", 0o644)
    second = script(tmp_path / "b/tool", "#!/bin/sh")
    (tmp_path / "c/tool").mkdir(parents=True)
    path = f"{tmp_path}/a:{tmp_path}/none:{tmp_path}/b"
    assert find_program("tool", str(tmp_path), path).found == str(second)
    assert find_program("b/tool", str(tmp_path), "").found == str(second)
    assert find_program("./b/tool", str(tmp_path), "").found == str(second)
    assert find_program("tool", str(tmp_path / "b"), "").found == str(second)  # an empty entry is the working directory
    assert code("tool", tmp_path, str(first.parent)) == 126
    assert code(str(first), tmp_path, "") == 126
    assert code("c/tool", tmp_path, "") == 126
    assert code("tool", tmp_path, f"{tmp_path}/none") == 127
    assert code("./none", tmp_path, "") == 127
    assert code(f"{second}/below", tmp_path, "") == 127
    assert code("", tmp_path, path) == 127
    assert code("no\0pe", tmp_path, path) == 126


def test_mode_none_only_finds_the_command() -> None:
    found = runtime_needs(["true"], "/", ENV, "none")
    assert (found.path, found.grants) == (find_program("true", "/", ENV["PATH"]).found, ())


def test_the_prefix_is_the_interpreters(tmp_path: Path) -> None:
    venv.create(tmp_path / "v", symlinks=True, with_pip=False)
    python = os.path.realpath("/usr/bin/python3")
    assert prefix(str(tmp_path / "v/bin/python")) == os.path.realpath(tmp_path / "v")
    assert prefix(str(script(tmp_path / "bin/tool", f"#!{tmp_path}/v/bin/python"))) == os.path.realpath(tmp_path / "v")
    assert prefix("/usr/bin/python3") == prefix("/bin/sh") == os.path.dirname(os.path.dirname(python))


def test_a_program_without_an_interpreter_opens_nothing_by_its_prefix(tmp_path: Path) -> None:
    shutil.copy("/bin/true", tmp_path / "agent")
    assert prefix(str(tmp_path / "agent")) == os.path.realpath(tmp_path / "agent")
    text = 'version = "1.0"\nfs.read = ["${prefix}/**"]\nfs.write = ["${prefix}/lib/**"]\n'
    context = Context(str(tmp_path), "/home/u", "/tmp/run", prefix(str(tmp_path / "agent")))
    policy = compile_policy(parse(text, syntax="toml", name="p.toml"), context)
    assert policy.rights(str(tmp_path / "agent")) == READ | EXEC
    assert policy.rights(str(tmp_path)) == policy.rights(str(tmp_path / "lib")) == 0


def test_closure_is_what_ldd_says() -> None:
    """The loader itself, asked to list, against our reading of the same headers."""
    for program in ("true", "git", "gcc", sys.executable):
        real = find_program(program, "/", ENV["PATH"]).real
        interpreter, libraries = elf.closure(real)
        listed = subprocess.run([interpreter, "--list", real], capture_output=True, text=True, check=True).stdout
        wanted = {
            os.path.realpath(line.split("=> ")[1].split(" (")[0]) for line in listed.splitlines() if "=> /" in line
        }
        assert wanted - {interpreter} == set(libraries) - {interpreter}


def test_libraries_of_another_word_size_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libc.so.6").write_bytes(b"\x7fELF\x01\x01" + b"\0" * 58)
    _, before = elf.closure("/usr/bin/true")
    cache = elf.library_cache()
    monkeypatch.setattr(
        elf, "library_cache", lambda: cache | {"libc.so.6": (str(tmp_path / "libc.so.6"), *cache["libc.so.6"])}
    )
    assert elf.closure("/usr/bin/true")[1] == before != ()


def test_files_that_are_not_elf_have_no_closure(tmp_path: Path) -> None:
    for i, data in enumerate(
        (b"", b"\x7fELF", b"\x7fELF\x02\x01" + b"\xff" * 58, b"#!/bin/sh\n", b"\x7fELF\x01\x01" + b"\0" * 58)
    ):
        (tmp_path / str(i)).write_bytes(data)
        assert elf.closure(str(tmp_path / str(i))) == ("", ())
    assert elf.closure(str(tmp_path / "absent")) == ("", ())


def test_a_truncated_elf_file_is_not_an_error(tmp_path: Path) -> None:
    data = Path("/usr/bin/true").read_bytes()
    for size in (64, 100, 700, 1000, 5000, len(data) - 1):
        path = tmp_path / str(size)
        path.write_bytes(data[:size])
        elf.closure(str(path))
        assert elf.read_elf(str(path)) is None or size >= 5000


def test_origin_and_runpath(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "l.c").write_text("int f(void) { return 0; }")
    (tmp_path / "m.c").write_text("int f(void); int main(void) { return f(); }")
    gcc = ["gcc", "-o"]
    subprocess.run([*gcc, tmp_path / "lib/libf.so", "-shared", "-fPIC", tmp_path / "l.c"], check=True)
    link = [f"-L{tmp_path}/lib", "-lf", "-Wl,-rpath,$ORIGIN/../lib"]
    subprocess.run([*gcc, tmp_path / "bin/m", tmp_path / "m.c", *link], check=True)
    assert str(tmp_path / "lib/libf.so") in elf.closure(str(tmp_path / "bin/m"))[1]
    assert needs([str(tmp_path / "bin/m")])[str(tmp_path / "lib/libf.so")] == READ


def test_a_plain_program_gets_itself_its_linker_and_libraries() -> None:
    granted = needs(["true"])
    executable = {pattern for pattern, need in granted.items() if need & EXEC}
    assert executable == {os.path.realpath("/usr/bin/true"), elf.closure("/usr/bin/true")[0]}
    assert not any(pattern.startswith(("/usr/lib/**", "/home", "/root", "/etc/ssl")) for pattern in granted)
    assert "/etc/passwd" not in granted
    assert not any(need & runtime.WRITE for need in granted.values())


def test_a_script_gets_its_interpreters(tmp_path: Path) -> None:
    inner = script(tmp_path / "inner", "#!/usr/bin/env -S python3 -u")
    outer = script(tmp_path / "outer", f"#! {inner} argument")
    granted = needs([str(outer)])
    for path in (outer, inner, "/usr/bin/env", find_program("python3", "/", ENV["PATH"]).real):
        assert granted[os.path.realpath(path)] == READ | EXEC
    loop = tmp_path / "loop"
    script(loop, f"#!{loop}")
    assert needs([str(loop)])[str(loop)] == READ | EXEC


def test_a_venv_and_its_base(tmp_path: Path) -> None:
    venv.create(tmp_path / "v", symlinks=True, with_pip=False)
    found, _, grants = runtime_needs(["v/bin/python"], str(tmp_path), ENV, "auto")
    granted = {grant.pattern: grant.need for grant in grants}
    assert found == str(tmp_path / "v/bin/python")
    assert granted[f"{tmp_path}/v/**"] == READ | EXEC
    assert granted[os.path.realpath(sys.executable)] == READ | EXEC
    assert granted[str(tmp_path / "v/bin/python")] == READ  # the link itself
    library = f"{os.path.realpath(os.path.dirname(os.__file__))}"
    assert any(
        library.startswith(p.removesuffix("/**")) for p, need in granted.items() if p.endswith("/**") and need & READ
    )
    assert granted[os.path.realpath("/etc/ssl/certs") + "/**"] == READ


def make_interpreter(path: Path) -> tuple[str, str]:
    script(path, "")
    return str(path), os.path.realpath(path)


@pytest.mark.parametrize(
    ("where", "whole"),
    [
        (".pyenv/versions/3.12.1/bin/python3.12", ".pyenv/versions/3.12.1"),
        (".local/share/uv/python/cpython-3.12/bin/python3.12", ".local/share/uv/python/cpython-3.12"),
        (".nvm/versions/node/v22/bin/node", ".nvm/versions/node/v22"),
        (".pyenv/shims/python", ".pyenv"),
        (".local/bin/python3.12", None),
        ("bin/node", None),
    ],
)
def test_never_a_home_beyond_the_prefix(tmp_path: Path, where: str, whole: str | None) -> None:
    home = tmp_path / "home"
    (home / ".local/lib/python3.12").mkdir(parents=True)
    patterns = installation(*make_interpreter(home / where), str(home)) or ()
    below_home = [p for p in patterns if p.startswith(str(tmp_path))]
    if whole is not None:
        assert below_home == [f"{home}/{whole}/**"]
    else:
        assert set(below_home) <= {f"{home}/.local/lib/python3.12/**"}


def test_no_interpreter_no_installation(tmp_path: Path) -> None:
    assert installation(*make_interpreter(tmp_path / "bin/pythonista"), "/root") is None
    assert installation("/usr/bin/true", "/usr/bin/true", "/root") is None


def test_names_that_are_patterns_are_not_granted(tmp_path: Path) -> None:
    odd = script(tmp_path / "a*b", "#!/bin/sh")
    assert not any("*b" in pattern for pattern in needs([str(odd)]))


def test_grants_are_canonical_and_exist() -> None:
    for pattern in needs(["python3"]):
        place = pattern.removesuffix("/**")
        assert os.path.lexists(place)
        if not os.path.islink(place) and not place.startswith("/proc/self"):
            assert os.path.realpath(place) == place
