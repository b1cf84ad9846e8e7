"""What every policy refuses, whatever it says, and what it grants by exact path only. Data, with the reasons.

Patterns are those of a policy, plus `<pid>` for a segment of digits: the enforcer writes the agent's own /proc
directory (and those of its run) as /proc/self, so a number that is left names a process outside.
"""

from __future__ import annotations

from akbox.policy.patterns import DIGITS, Segment, literal_segments, parse_path

READ, WRITE, EXEC = 1, 2, 4
ALL = READ | WRITE | EXEC

# (pattern, needs refused, reason)
ALWAYS_DENIED: tuple[tuple[str, int, str], ...] = (
    ("**/akbox.toml/**", WRITE, "an agent must not be able to widen its next run"),
    ("**/akbox.json/**", WRITE, "an agent must not be able to widen its next run"),
    ("/proc/<pid>/**", ALL, "a process outside the run"),
    ("/proc/self/mem", WRITE, "writing it goes around read-only mappings"),
    ("/proc/self/task/<pid>/mem", WRITE, "writing it goes around read-only mappings"),
    ("/proc/thread-self/mem", WRITE, "writing it goes around read-only mappings"),
    ("/proc/sys/**", WRITE, "settings of the host's kernel"),
    ("/proc/sysrq-trigger", ALL, "commands to the host's kernel"),
    ("/proc/kcore", ALL, "the host's memory"),
    ("/proc/kmsg", ALL, "consumes the host's kernel log"),
    ("/proc/irq/**", WRITE, "settings of the host's kernel"),
    ("/proc/scsi/**", WRITE, "commands to the host's devices"),
    ("/sys/fs/cgroup/**", WRITE, "limits of this and other processes"),
    ("/sys/kernel/**", WRITE, "settings of the host's kernel"),
    ("/sys/module/**", WRITE, "settings of the host's kernel"),
    ("/sys/power/**", WRITE, "commands to the host"),
    ("/sys/firmware/**", WRITE, "settings of the host's firmware"),
    ("/dev/mem", ALL, "the host's memory"),
    ("/dev/kmem", ALL, "the host's memory"),
    ("/dev/port", ALL, "the host's I/O ports"),
)

# Everything in /dev is granted by exact path only, apart from these: they hold nothing and reach nobody else.
GUARDED_DEVICES = "/dev/*/**"
SAFE_DEVICES = (
    *(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts/ptmx")),
    "/dev/fd/**",
    "/dev/shm/**",  # memory files, not devices
)

# Sockets of services that act with their own authority for whoever connects. Granted by exact path only.
AUTHORITY_SOCKETS: tuple[tuple[str, str], ...] = (
    ("**/docker.sock", "Docker: root on the host"),
    ("**/docker/**", "Docker: root on the host"),
    ("**/podman.sock", "Podman: containers of the user"),
    ("**/podman/**", "Podman: containers of the user"),
    ("**/containerd.sock*", "containerd: root on the host"),
    ("**/containerd/**", "containerd: root on the host"),
    ("**/crio.sock", "CRI-O: root on the host"),
    ("**/buildkitd.sock", "BuildKit: runs builds"),
    ("**/libvirt/**", "libvirt: virtual machines"),
    ("**/lxd/**", "LXD: root on the host"),
    ("**/incus/**", "Incus: root on the host"),
    ("**/dbus/**", "D-Bus: services of the system"),
    ("**/dbus-*", "D-Bus: services of the session"),
    ("/run/user/*/bus", "D-Bus: services of the session"),
    ("/run/user/*/at-spi/**", "accessibility bus: keys and windows"),
    ("**/S.gpg-agent*", "gpg-agent: signs with the user's keys"),
    ("**/S.scdaemon", "smart cards"),
    ("**/agent.*", "ssh-agent: signs with the user's keys"),
    ("**/ssh-*/**", "ssh-agent: signs with the user's keys"),
    ("**/openssh_agent", "ssh-agent: signs with the user's keys"),
    ("**/keyring/**", "the user's key ring"),
    ("**/.X11-unix/**", "X11: keys and windows"),
    ("/run/user/*/wayland-*", "Wayland: windows"),
    ("/run/user/*/pipewire-*", "microphone and screen"),
    ("/run/user/*/pulse/**", "microphone"),
    ("/run/snapd*", "snapd: installs as root"),
    ("/run/systemd/**", "systemd: services of the system"),
    ("/run/user/*/systemd/**", "systemd: services of the user"),
    ("/run/udev/**", "udev: devices"),
    ("**/tmux-*/**", "tmux: types into other terminals"),
    ("**/S-*/*", "screen: types into other terminals"),
)


def builtin_segments(pattern: str) -> tuple[Segment, ...]:
    """parse_path() that knows `<pid>`."""
    segments = parse_path(pattern.replace("<pid>", "pid*")).segments
    return tuple((DIGITS, b"") if raw == b"pid*" else (kind, raw) for kind, raw in segments)


def state_dir_segments(path: str) -> tuple[Segment, ...]:
    """A directory of akbox's own and everything below, its name taken literally."""
    return literal_segments(path) + builtin_segments("/**")
