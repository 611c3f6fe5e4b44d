"""`slurmbus up` with nobody to ask: passwords and one-time codes come from a file of SOPS or of age."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.laptops import Laptop, ssh_processes
from integration.logins import Logins
from slurmbus.bootstrap import prompts
from slurmbus_cluster import Cluster

TOOLS = Path(__file__).parents[2] / ".uv" / "bin"
"""Where `make secrets` installs SOPS, apart from everything else."""

OTP_SECRET = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
"""RFC 6238's test secret in Base32: what the login nodes have for kate."""


@pytest.fixture(autouse=True)
def programs(engine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real SOPS, GnuPG and age. A machine that must run these tests must have them."""
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}{os.pathsep}{TOOLS}")
    missing = [name for name in ("sops", "gpg", "age") if shutil.which(name) is None]
    if missing:
        message = f"{', '.join(missing)}: not installed; run `make secrets` as root (Debian)"
        pytest.fail(message) if os.environ.get("SLURMBUS_REQUIRE_CLUSTER") else pytest.skip(message)


@pytest.fixture
def gnupg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A key of GnuPG, which SOPS encrypts for; give its fingerprint."""
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("GNUPGHOME", str(home))
    make = [
        "gpg",
        "--batch",
        "--passphrase",
        "",
        "--quick-gen-key",
        "kate@laptop.example",
        "default",
        "default",
        "never",
    ]
    subprocess.run(make, check=True, capture_output=True)
    shown = subprocess.run(["gpg", "--list-keys", "--with-colons"], check=True, capture_output=True, text=True).stdout
    yield next(line.split(":")[9] for line in shown.splitlines() if line.startswith("fpr:"))
    subprocess.run(["gpgconf", "--kill", "all"], check=True)


def sops_file(folder: Path, fingerprint: str, secrets: dict[str, str]) -> Path:
    plain, path = folder / "plain.json", folder / "secrets.json"
    plain.write_text(json.dumps(secrets))
    made = subprocess.run(["sops", "--encrypt", "--pgp", fingerprint, plain], check=True, capture_output=True).stdout
    path.write_bytes(made)
    plain.unlink()
    assert not any(value.encode() in made for value in secrets.values())
    return path


def test_a_password_and_a_one_time_code_from_a_file_of_sops(
    laptop: Laptop, cluster: Cluster, gnupg: str, tmp_path: Path
) -> None:
    secrets = sops_file(tmp_path, gnupg, {prompts.PASSWORD: "kate-pass", prompts.OTP: OTP_SECRET})
    with laptop.up("kate", "login", "--secrets-file", str(secrets)) as (site, said):
        assert f"{site} is up" in said.err
        assert laptop.run_job(site, "id", "-un").out == "kate\n"
        kept = [path for path in laptop.home.path.rglob("*") if path.is_file()]
        assert kept
        assert not [
            path for path in kept if b"kate-pass" in path.read_bytes() or OTP_SECRET.encode() in path.read_bytes()
        ]
        shown = cluster.exec("login", ["grep", "-rlE", f"kate-pass|{OTP_SECRET}", "/home/kate"], check=False).stdout
        assert shown == ""


def test_a_password_from_a_file_of_age(laptop: Laptop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity, secrets = tmp_path / "identity", tmp_path / "secrets.age"
    subprocess.run(["age-keygen", "-o", identity], check=True, capture_output=True)
    recipient = subprocess.run(
        ["age-keygen", "-y", identity], check=True, capture_output=True, text=True
    ).stdout.strip()
    plain = f"{prompts.PASSWORD}=carol-pass\n"
    subprocess.run(["age", "--recipient", recipient, "--output", secrets], input=plain, text=True, check=True)
    monkeypatch.setenv("SLURMBUS_AGE_IDENTITY", str(identity))
    with laptop.up("carol", "login", "--secrets-file", str(secrets)) as (site, said):
        assert f"{site} is up" in said.err
        assert laptop.run_job(site, "id", "-un").out == "carol\n"


def test_each_host_on_the_way_gets_its_own_and_no_other_s(laptop: Laptop, logins: Logins, tmp_path: Path) -> None:
    """Kate's password and code for the jump host, Carol's password for the login node behind it."""

    def up(**secrets: str) -> list[str]:
        path.write_text("".join(f"{name}={value}\n" for name, value in secrets.items()))
        encrypted = subprocess.run(["age", "--recipient", recipient, path], check=True, capture_output=True).stdout
        path.with_suffix(".age").write_bytes(encrypted)
        path.unlink()
        return ["--jump", "kate@jump", "--secrets-file", str(path.with_suffix(".age"))]

    identity, path = tmp_path / "identity", tmp_path / "secrets"
    subprocess.run(["age-keygen", "-o", identity], check=True, capture_output=True)
    recipient = subprocess.run(
        ["age-keygen", "-y", identity], check=True, capture_output=True, text=True
    ).stdout.strip()
    env = {"SLURMBUS_AGE_IDENTITY": str(identity)}
    jump = logins.cluster.ip("jump")
    asked = f"KATE_{jump.replace('.', '_')}"
    with logins.only_through("jump"):
        only_carol_s = up(**{prompts.PASSWORD: "carol-pass", prompts.OTP: OTP_SECRET})
        refused = laptop.slurmbus(*laptop.arguments("site-carol", "carol", "login2", *only_carol_s), env=env, ok=False)
        assert f"the secrets file has no answer for kate@{jump}" in refused.err
        assert "Traceback" not in refused.err
        theirs = {f"{prompts.PASSWORD}__{asked}": "kate-pass", f"{prompts.OTP}__{asked}": OTP_SECRET}
        with laptop.up("carol", "login2", *up(**theirs, **{prompts.PASSWORD: "carol-pass"}), env=env) as (site, said):
            assert f"{site} is up" in said.err
            assert laptop.run_job(site, "id", "-un").out == "carol\n"


def test_a_file_that_is_not_for_us_stops_before_a_login(laptop: Laptop, gnupg: str, tmp_path: Path) -> None:
    secrets = sops_file(tmp_path, gnupg, {prompts.PASSWORD: "carol-pass"})
    shutil.rmtree(tmp_path / "gnupg" / "private-keys-v1.d")
    subprocess.run(["gpgconf", "--kill", "all"], check=True)
    refused = laptop.slurmbus(
        *laptop.arguments("site-carol", "carol", "login", "--secrets-file", str(secrets)), ok=False
    )
    assert refused.code == 2
    assert f"secrets_file={secrets}: sops says:" in refused.err
    assert "Traceback" not in refused.err
    assert not ssh_processes([str(laptop.logins.config)])
