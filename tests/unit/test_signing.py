"""Signatures: only a trusted key, and only for the very subject and bytes."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from slurmbus_protocol.errors import BadSignature, InvalidSetting
from slurmbus_protocol.signing import KEY_HEADER, SIGNATURE_HEADER, Signer, TrustedKeys


def test_a_trusted_key_is_believed_for_its_own_subject_and_bytes_only() -> None:
    signer = Signer.generate()
    keys = TrustedKeys([signer.public])
    headers = signer.headers("a.subject", b"body")
    assert keys.verify("a.subject", b"body", headers) == signer.public
    for subject, body in (("another.subject", b"body"), ("a.subject", b"Body"), ("a.subject", b"")):
        with pytest.raises(BadSignature):
            keys.verify(subject, body, headers)


@pytest.mark.parametrize("headers", [None, {}, {KEY_HEADER: "x"}, {SIGNATURE_HEADER: "AAAA"}])
def test_without_a_known_key_nothing_is_believed(headers: dict[str, str] | None) -> None:
    with pytest.raises(BadSignature):
        TrustedKeys([Signer.generate().public]).verify("a", b"b", headers)


@pytest.mark.parametrize("signature", ["", "AAAA", "not base64!", "A" * 88])
def test_a_broken_signature_is_refused(signature: str) -> None:
    signer = Signer.generate()
    with pytest.raises(BadSignature):
        TrustedKeys([signer.public]).verify("a", b"b", {KEY_HEADER: signer.public, SIGNATURE_HEADER: signature})


def test_an_untrusted_key_is_refused_with_what_to_do() -> None:
    stranger = Signer.generate()
    with pytest.raises(BadSignature, match="trusted_keys"):
        TrustedKeys([Signer.generate().public]).verify("a", b"b", stranger.headers("a", b"b"))


def test_keys_are_kept_in_files_that_only_their_owner_reads_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "client.key"
    signer = Signer.generate()
    signer.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Signer.load(path).public == signer.public
    with pytest.raises(FileExistsError):
        Signer.generate().save(path)


def test_a_file_that_is_no_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "client.key"
    path.write_text("rubbish")
    with pytest.raises(InvalidSetting, match=r"client\.key"):
        Signer.load(path)
    with pytest.raises(InvalidSetting, match="64 hex"):
        TrustedKeys(["rubbish"])
