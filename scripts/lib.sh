# What scripts/quickstart and scripts/test share: finding a Python, system packages, the virtual environment. Sourced, not run.
# shellcheck shell=bash

set -euo pipefail
umask 022 # the tests also run as an ordinary user, who must be able to read .venv and the checkout

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV="$ROOT/.venv"

say() { printf '%s\n' "==> $*" >&2; }
die() {
	printf '%s\n' "error: $1" >&2
	[ $# -lt 2 ] || printf '%s\n' "  fix: $2" >&2
	exit 1
}

is_root() { [ "$(id -u)" -eq 0 ]; }
as_ordinary_user() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }

# apt_install PACKAGE…: installs what is missing when we are root on a machine with apt; otherwise says what to install.
apt_install() {
	local missing=() package
	for package in "$@"; do
		dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	if is_root && command -v apt-get >/dev/null; then
		say "installing ${missing[*]}"
		export DEBIAN_FRONTEND=noninteractive
		apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1 && return 0
		apt-get update -qq >&2 || true
		apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null && return 0
	fi
	return 1
}

# usable_python PYTHON: at least 3.11, complete (headers, venv), and within reach of an ordinary user when we are root.
usable_python() {
	command -v "$1" >/dev/null || return 1
	"$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || return 1
	! is_root || (cd / && as_ordinary_user "$1" -I -c 'import encodings' 2>/dev/null) || return 1
}
complete_python() {
	"$1" -I -c '
import ensurepip, os, sys, sysconfig, venv
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' 2>/dev/null
}

# find_python: prints the path of the Python to build with; AKBOX_PYTHON, when set, is the only candidate.
find_python() {
	local candidate
	for candidate in ${AKBOX_PYTHON:-/usr/bin/python3 /usr/local/bin/python3 python3.13 python3.12 python3.11 python3}; do
		if usable_python "$candidate"; then
			command -v "$candidate"
			return 0
		fi
	done
	return 1
}

# need_toolchain: Python >= 3.11 with headers, a C compiler, kernel headers and libseccomp; installs them when it may.
need_toolchain() {
	PYTHON=$(find_python) || { apt_install python3 || true; PYTHON=$(find_python) || die \
		"no Python 3.11 or newer that an ordinary user can run was found" "install python3 (>= 3.11), or set AKBOX_PYTHON"; }
	complete_python "$PYTHON" || apt_install python3-venv python3-dev || true
	complete_python "$PYTHON" || die "$PYTHON lacks its headers (Python.h) or the venv module" \
		"apt-get install python3-venv python3-dev"
	command -v gcc >/dev/null || apt_install gcc libc6-dev || die "gcc is missing" "apt-get install gcc libc6-dev"
	printf '#include <linux/seccomp.h>\n#include <stdlib.h>\n' | gcc -fsyntax-only -x c - 2>/dev/null ||
		apt_install libc6-dev linux-libc-dev || die "the C or kernel headers are missing" "apt-get install libc6-dev linux-libc-dev"
	has_libseccomp || apt_install libseccomp2 || die "libseccomp is missing" "apt-get install libseccomp2"
}
has_libseccomp() {
	"$PYTHON" -I -c 'import ctypes; ctypes.CDLL("libseccomp.so.2")' 2>/dev/null
}

# need_venv EXTRAS: .venv with akbox installed from this checkout (editable) and the given extras ("" or "[dev]").
# A stamp of everything the install depends on makes the second call free; an install with extras serves those without.
need_venv() {
	local extras=$1 stamp="$VENV/.akbox-stamp" want
	want=$(cd "$ROOT" && { printf '%s\n' "$PYTHON $VENV"; cat pyproject.toml setup.py native/*; } | sha256sum)
	if [ -f "$stamp" ] && [[ "$(cat "$stamp")" == "$want$extras"* ]] && "$VENV/bin/python" -c 'import akbox._native' 2>/dev/null; then
		return 0
	fi
	[ ! -e "$VENV" ] || [ -w "$VENV" ] ||
		die "$VENV belongs to someone else and is out of date" "remove it, or run this as its owner"
	if ! { [ -x "$VENV/bin/python" ] && usable_python "$VENV/bin/python"; }; then
		say "making .venv with $PYTHON"
		"$PYTHON" -m venv --clear "$VENV"
	fi
	say "installing akbox$extras into .venv"
	(
		flock 9
		cd "$ROOT" && "$VENV/bin/python" -m pip install -q --disable-pip-version-check --no-input -e ".$extras"
	) 9>"$ROOT/.build.lock"
	printf '%s\n' "$want$extras" >"$stamp"
}
