"""Making keys and certificates: a small authority of one's own, what it vouches for, and certificates that stand alone.

All keys are NIST P-256, which every OpenSSL that Python uses takes, in FIPS mode too. Importing this costs 11 MB of
memory: processes that live long import it only when something has to be made, or run it as a program::

    python -m slurmbus_protocol.certificates NAME      # a certificate that stands alone, and its key, as PEM
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from slurmbus_protocol.errors import InvalidSetting

AUTHORITY_DAYS = 20 * 365
"""An authority is pinned in files that people have copied: it outlives them."""
_SKEW = dt.timedelta(days=1)
"""Certificates are valid from a day ago, for hosts whose clock is behind."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key, both as PEM."""

    pem: str
    key: str


def make_authority(name: str) -> Certificate:
    """Make an authority that vouches for servers, and for no other authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    usage = _usage(key_cert_sign=True, crl_sign=True)
    builder = (
        _builder(name, _name(name), key, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(own, critical=False)
    )
    return _signed(builder, key, key)


def issue(authority: Certificate, names: Sequence[str], days: int) -> Certificate:
    """Make a server's certificate for host names and addresses; InvalidSetting when the authority can't be read."""
    try:
        issuer = x509.load_pem_x509_certificate(authority.pem.encode())
        issuer_key = serialization.load_pem_private_key(authority.key.encode(), None)
    except ValueError as error:
        raise InvalidSetting(f"the certificate authority can't be read: {error}") from error
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        raise InvalidSetting("the certificate authority's key isn't one of ours")
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(names[0], issuer.subject, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    return _signed(builder, key, issuer_key)


def make_alone(name: str) -> Certificate:
    """Make a certificate that is pinned by its fingerprint: nothing in it but the key matters."""
    key = ec.generate_private_key(ec.SECP256R1())
    return _signed(_builder(name, _name(name), key, AUTHORITY_DAYS), key, key)


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(name: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _signed(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, issuer_key: ec.EllipticCurvePrivateKey
) -> Certificate:
    certificate = builder.sign(issuer_key, hashes.SHA256())
    return Certificate(
        pem=certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(name: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    return x509.DNSName(name)


if __name__ == "__main__":
    made = make_alone(sys.argv[1])
    sys.stdout.write(made.pem + made.key)
