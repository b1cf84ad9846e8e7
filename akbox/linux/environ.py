"""The agent's environment: an allow-list, what the policy passes and sets, and what akbox adds. Nothing else.

Names that steer an interpreter, and names or values that look like a credential, are left out even where a pattern
would pass them; a policy that means one says its exact name in env.pass. The caller's LD_* and PYTHONPATH never pass:
whoever needs one writes its value into env.set.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from akbox.policy.model import Env

# Passed when the caller has them. TMPDIR is set, not passed: it is a private directory of the run.
ALLOWED = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL"),
    *("LANG", "LANGUAGE", "LC_*", "TZ"),
    *("TERM", "COLORTERM", "TERM_PROGRAM", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE"),
)

# They decide what code every program of the run starts with, before any of it is judged.
NEVER = ("LD_*", "PYTHONPATH")

# They run code, or replace what programs load, in one family of programs.
STEERING = (
    *("GCONV_PATH", "GLIBC_TUNABLES", "MALLOC_*", "NLSPATH", "LOCPATH", "HOSTALIASES", "RESOLV_HOST_CONF"),
    *("PYTHON*", "PERL5*", "PERLLIB", "RUBYOPT", "RUBYLIB", "NODE_OPTIONS", "NODE_PATH"),
    *("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS", "CLASSPATH"),
    *("BASH_ENV", "ENV", "BASH_FUNC_*", "SHELLOPTS", "BASHOPTS", "PS4", "PROMPT_COMMAND", "IFS", "CDPATH", "ZDOTDIR"),
    *("GIT_*", "EDITOR", "VISUAL", "PAGER", "BROWSER", "TERMINFO*", "TERMCAP"),
)

_SECRET_WORDS = re.compile(
    r"(?:^|_)(?:KEY|SECRETS?|TOKENS?|PASSWORD|PASSWD|PASSPHRASE|PASS|CREDENTIALS?|CREDS|AUTH|COOKIE|SESSION|BEARER|DSN"
    r"|CONNECTION_STRING|DATABASE_URL|WEBHOOK_URL)(?:_|$|\d)|(?:KEY|PASSWORD|SECRET|TOKEN)$"
)
_SECRET_NAMES = (
    "SSH_*",
    "GPG_AGENT_INFO",
    "DBUS_*",
    "XAUTHORITY",
    "KRB5*",
    "KUBECONFIG",
    "AWS_*",
    "DOCKER_*",
    "VAULT_*",
)
# Shapes that issuers give their keys so that scanners find them, private key blocks, and signed tokens.
_SECRET_VALUE = re.compile(
    r"^(?:sk-|sk_live_|rk_live_|gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|AKIA|ASIA|AIza|ya29\.|npm_|pypi-|hf_|dop_v1_"
    r"|SG\.|shpat_|AGE-SECRET-KEY-)[\w.\-]{10,}|-----BEGIN [A-Z ]*PRIVATE KEY|^eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+$"
)


def build_environment(
    host: Mapping[str, str],
    policy: Env,
    *,
    tmpdir: str,
    extra: Mapping[str, str],
    variables: Mapping[str, str] | None = None,
) -> tuple[dict[str, str], list[str]]:
    """(the agent's environment, names of the caller's that were left out, sorted).

    host: the caller's environment; policy: env.pass (names and patterns) and env.set; extra: what akbox adds, it wins
    over both; variables: what `${name}` in env.set stands for (Context.variables()). Raises ValueError for a name or
    value that cannot be in an environment.
    """
    env: dict[str, str] = {}
    removed = []
    for name, value in host.items():
        if passes(name, value, policy.passed):
            env[name] = value
        else:
            removed.append(name)
    env |= {"TMPDIR": tmpdir}
    stated = {name: _expand(value, variables or {}) for name, value in policy.set.items()}
    env |= stated
    for name, value in extra.items():
        # Python's search path is a list: what a policy sets comes after what akbox needs in front
        env[name] = f"{value}:{stated[name]}" if name == "PYTHONPATH" and stated.get(name) else value
    for name, value in env.items():
        if not name or "=" in name or "\0" in name + value:
            raise ValueError(f"environment variable {name!r} cannot be passed to a program")
    return env, sorted(set(removed) - env.keys())


def passes(name: str, value: str, passed: Iterable[str] = ()) -> bool:
    """Does the caller's variable reach the agent?"""
    if _matches(name, NEVER):
        return False
    if name in passed:
        return True
    if not (_matches(name, ALLOWED) or _matches(name, passed)):
        return False
    return not (_matches(name, STEERING) or looks_secret(name, value))


def looks_secret(name: str, value: str) -> bool:
    """By its name (…_TOKEN, AWS_…), its value (sk-…, a private key, a signed token), or a URL with a password in it."""
    if _SECRET_WORDS.search(name.upper()) or _matches(name.upper(), _SECRET_NAMES) or _SECRET_VALUE.search(value):
        return True
    return "://" in value and "@" in value and _url_password(value)


def _expand(value: str, variables: Mapping[str, str]) -> str:
    for name, meaning in variables.items():
        value = value.replace(f"${{{name}}}", meaning)
    return value


def _url_password(value: str) -> bool:
    from urllib.parse import urlsplit

    try:
        return bool(urlsplit(value).password)
    except ValueError:
        return True  # not a URL that anybody could read: treat it as one that hides something


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """A pattern is a name, or its start and a `*` (nothing else passes the policy's grammar)."""
    names, starts = _sorted_out(tuple(patterns))
    return name in names or name.startswith(starts)


@lru_cache(maxsize=16)
def _sorted_out(patterns: tuple[str, ...]) -> tuple[frozenset[str], tuple[str, ...]]:
    """Whole names, and the starts of names: asked for each variable of the caller's, at every start."""
    starts = tuple(p[:-1] for p in patterns if p.endswith("*"))
    return frozenset(p for p in patterns if not p.endswith("*")), starts
