"""Started by peers.py with the interpreter of a sandbox that is a library: `libraries.py NAME JSON`.

Its exit code is the command's, 128+n for signal n. Imports nothing of akbox.
"""

import json
import os
import sys


def with_sandlock(told):
    import sandlock

    more = {}
    if "pids" in told["limits"]:
        more["max_processes"] = told["limits"]["pids"]
    if "open_files" in told["limits"]:
        more["max_open_files"] = told["limits"]["open_files"]
    if "memory" in told["limits"]:
        more["max_memory"] = told["limits"]["memory"]
    box = sandlock.Sandbox(
        fs_readable=told["read"], fs_writable=told["write"], fs_denied=told["deny"], cwd=told["cwd"], **more
    )
    done = box.run_interactive(told["command"])
    return getattr(done, "exit_code", done)


def with_nono(told):
    import nono_py

    caps = nono_py.CapabilitySet()
    for paths, mode in ((told["read"], nono_py.AccessMode.READ), (told["write"], nono_py.AccessMode.READ_WRITE)):
        for path in paths:
            allow = caps.allow_path if os.path.isdir(path) else caps.allow_file
            try:
                allow(path, mode)
            except ValueError:  # a device: it takes plain files and directories only
                continue
    caps.block_network()
    names = {"pids": "max_processes", "open_files": "max_open_files", "file_size": "max_file_size_bytes"}
    limits = {names[name]: value for name, value in told["limits"].items()}
    environment = list(os.environ.items())
    done = nono_py.sandboxed_exec(
        caps, told["command"], cwd=told["cwd"], env=environment, enforcement_mode="seccomp", **limits
    )
    sys.stdout.buffer.write(done.stdout)
    sys.stderr.buffer.write(done.stderr)
    return done.exit_code


if __name__ == "__main__":
    told = json.loads(sys.argv[2])
    code = {"sandlock": with_sandlock, "nono": with_nono}[sys.argv[1]](told)
    sys.stdout.flush()
    sys.exit(code if code >= 0 else 128 - code)
