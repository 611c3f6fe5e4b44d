"""What answers the prompts of a login: the user's terminal, an askpass program, or a file of SOPS or age.

A secrets file holds, as JSON, YAML's plain ``NAME: value`` lines or dotenv, any of

* ``SLURMBUS_SSH_PASSWORD``: of the account,
* ``SLURMBUS_SSH_PASSPHRASE``: of the key,
* ``SLURMBUS_SSH_OTP``: the secret of the one-time codes in Base32 (RFC 6238: 6 digits, 30 s, SHA-1).

Password and codes are for the login node, and no host on the way there gets them. Another host's name has that host
after ``__``, in capitals, and ``_`` for what is neither a letter nor a digit:
``SLURMBUS_SSH_PASSWORD__GATE_EXAMPLE_ORG``, or ``…__ALICE_GATE_EXAMPLE_ORG`` for one user of it. Hosts are
called as OpenSSH's prompts call them.

Other names are there for ``before_login`` and for an askpass program of one's own. Nothing of it is written anywhere:
the values are in the environment of ``ssh`` and of these programs only, which other users can't read.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from slurmbus.bootstrap.login import Login, words
from slurmbus.errors import LoginFailed
from slurmbus_protocol.errors import InvalidSetting

PASSWORD, PASSPHRASE, OTP = "SLURMBUS_SSH_PASSWORD", "SLURMBUS_SSH_PASSPHRASE", "SLURMBUS_SSH_OTP"
_STEP = 30
_DESTINATION, _DIRECT = "SLURMBUS_SSH_DESTINATION", "SLURMBUS_SSH_DIRECT"
"""For our own askpass program: who may have the login node's secrets, and whether nobody else can be asking."""
_PREFIXING = (8, 5)
"""From this version on OpenSSH says which host it is that sent a prompt. Source: its release notes, bz#3224."""
_LONGEST_USER, _LONGEST_HOST = 30, 128
"""As much as OpenSSH shows. Source: userauth_passwd() in its sshconnect2.c."""
_SENT = re.compile(r"\((?P<who>\S+@[^\s)]+)\) (?P<text>.*)", re.DOTALL)
_OWN = re.compile(r"(?P<who>\S+@\S+)'s (?P<text>password: )")
_ONE_TIME = re.compile(r"one.?time|verification|\botp\b|\btotp\b|token|second factor|2fa|authenticator", re.IGNORECASE)
_PASSPHRASE = re.compile(r"Enter passphrase for ", re.IGNORECASE)
_PASSWORD = re.compile(r"password", re.IGNORECASE)
_LINE = re.compile(r"""^\s*(?:export\s+)?(?P<name>[A-Za-z_]\w*)\s*[=:]\s*(?P<value>.*?)\s*$""")


def environment(login: Login) -> dict[str, str]:
    """Give what ``ssh`` and the command before it need, besides this process's environment.

    Raises:
        InvalidSetting: the secrets can't be opened, or the askpass program isn't there.
    """
    found = open_file(Path(login.secrets_file).expanduser()) if login.secrets_file else {}
    if login.askpass is not None:
        program = words("askpass", login.askpass)
        path = shutil.which(program[0]) if len(program) == 1 else None
        if path is None:
            raise InvalidSetting(f"askpass={login.askpass!r} is no program", hint="name one that can be started")
        found |= {"SSH_ASKPASS": path, "SSH_ASKPASS_REQUIRE": "force"}
    elif any(name.partition("__")[0] in {PASSWORD, PASSPHRASE, OTP} for name in found):
        found |= {"SSH_ASKPASS": str(own_askpass()), "SSH_ASKPASS_REQUIRE": "force", **_who_asks(login)}
    return found


def _who_asks(login: Login) -> dict[str, str]:
    """Give what our own askpass program has to know of the way.

    Raises:
        InvalidSetting: OpenSSH wouldn't say which host of several asks.
    """
    from slurmbus.bootstrap.ssh import resolved, version  # noqa: PLC0415 - as below

    way = resolved(login)
    direct = way.keys().isdisjoint({"proxyjump", "proxycommand"})
    if not direct and version() < _PREFIXING:
        raise InvalidSetting(
            "secrets_file: this OpenSSH doesn't say which host asks, and others are on the way to the login node",
            hint=f"OpenSSH {_PREFIXING[0]}.{_PREFIXING[1]} does; or answer at the terminal",
        )
    who = f"{way['user']}@{way.get('hostkeyalias') or way['hostname']}"
    return {_DESTINATION: who, **({_DIRECT: "1"} if direct else {})}


def own_askpass() -> Path:
    """Give a program that answers prompts from its environment; ``ssh`` wants one word, so it is a small script."""
    from slurmbus.bootstrap.ssh import run_folder  # noqa: PLC0415 - it needs more than this module, which answers prompts

    path = run_folder() / "askpass"
    text = f'#!/bin/sh\nexec "{sys.executable}" -m slurmbus.bootstrap.prompts "$1"\n'
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
        path.chmod(0o700)
    return path


def open_file(path: Path) -> dict[str, str]:
    """Decrypt a file, with the person's own keys, and give what stands there by name.

    Raises:
        InvalidSetting: it can't be decrypted or read.
    """
    if path.suffix == ".age":
        identity = os.environ.get("SLURMBUS_AGE_IDENTITY") or os.environ.get("SOPS_AGE_KEY_FILE")
        command = ["age", "--decrypt", *(("--identity", identity) if identity else ()), str(path)]
    else:
        command = ["sops", "--decrypt", "--output-type", "json", str(path)]
    if shutil.which(command[0]) is None:
        raise InvalidSetting(f"secrets_file={path}: {command[0]} isn't installed here")
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=None)
    if done.returncode != 0:
        raise InvalidSetting(f"secrets_file={path}: {command[0]} says: {done.stderr.strip()[-500:]}")
    return parse(done.stdout)


def parse(text: str) -> dict[str, str]:
    """Read names and values out of JSON or of lines ``NAME=value`` and ``NAME: value`` (pure)."""
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except ValueError as error:
            raise InvalidSetting(f"the secrets can't be read: {error}") from error
        return {str(name): str(value) for name, value in found.items() if isinstance(value, str | int)}
    matches = (_LINE.match(line) for line in text.splitlines() if not line.lstrip().startswith("#"))
    return {match["name"]: match["value"].strip("\"'") for match in matches if match}


def asked_by(prompt: str) -> tuple[str | None, str]:
    """Split OpenSSH's prompt into ``user@host`` and what is asked; None: it doesn't say who asks (pure).

    What a host has sent begins with ``(user@host)``, so that none can call itself another one.
    """
    found = _SENT.fullmatch(prompt) or _OWN.fullmatch(prompt)
    return (found["who"], found["text"]) if found else (None, prompt)


def answer(prompt: str, secrets: Mapping[str, str], now: float, destination: str, *, direct: bool) -> str | None:
    """Give what a prompt asks for, or None when that isn't known (pure).

    Args:
        prompt: OpenSSH's.
        secrets: by the names of the file.
        now: seconds since the epoch.
        destination: ``user@host`` of the login node.
        direct: no other host is on the way, so that a prompt is the login node's though it doesn't say so.
    """
    who, text = asked_by(prompt)
    if who is None:
        if _PASSPHRASE.match(prompt):  # this machine's own question
            return secrets.get(PASSPHRASE)
        if not direct:
            return None
    who = who or destination
    if _ONE_TIME.search(text) and (secret := _secret(OTP, who, secrets, destination)) is not None:
        return one_time_code(secret, now)
    return _secret(PASSWORD, who, secrets, destination) if _PASSWORD.search(text) else None


def _secret(name: str, who: str, secrets: Mapping[str, str], destination: str) -> str | None:
    names = [f"{name}__{_word(who)}", f"{name}__{_word(who.rpartition('@')[2])}"]
    if _shown(who) == _shown(destination):
        names.append(name)
    return next((secrets[each] for each in names if each in secrets), None)


def _word(host: str) -> str:
    return re.sub(r"[^A-Z0-9]", "_", host.upper())


def _shown(who: str) -> tuple[str, str]:
    user, _, host = who.rpartition("@")
    return user[:_LONGEST_USER], host[:_LONGEST_HOST].lower()


def one_time_code(secret: str, now: float) -> str:
    """Give the code of this moment. Source: RFC 6238, RFC 4226."""
    text = secret.replace(" ", "").upper()
    try:
        key = base64.b32decode(text + "=" * (-len(text) % 8))
    except binascii.Error as error:
        raise InvalidSetting(f"{OTP} isn't Base32") from error
    digest = hmac.digest(key, int(now // _STEP).to_bytes(8, "big"), "sha1")
    offset = digest[-1] & 15
    return f"{(int.from_bytes(digest[offset : offset + 4], 'big') & 0x7FFFFFFF) % 1_000_000:06}"


def before_login(login: Login, secrets: Mapping[str, str]) -> None:
    """Run the command of this machine that comes before the login, at the person's terminal.

    Raises:
        LoginFailed: it failed.
    """
    command = words("before_login", login.before_login)
    if not command:
        return
    try:
        code = subprocess.run(command, env={**os.environ, **secrets}, check=False).returncode
    except OSError as error:
        raise LoginFailed(f"before_login: {command[0]} can't be started: {error.strerror}") from error
    if code != 0:
        raise LoginFailed(f"before_login: {command[0]} ended with {code}", hint="what it said stands above")


def main(prompt: str) -> int:
    """Answer a prompt of ``ssh``; 1 when the answer isn't known."""
    destination, direct = os.environ.get(_DESTINATION, ""), _DIRECT in os.environ
    said = answer(prompt, os.environ, time.time(), destination, direct=direct)
    if said is None:
        who = asked_by(prompt)[0] or "what doesn't say who asks"
        print(f"the secrets file has no answer for {who}", file=sys.stderr)  # noqa: T201 - ssh's log
        return 1
    print(said)  # noqa: T201 - what ssh reads
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))
