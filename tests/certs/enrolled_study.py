"""Names of one small study, and a forge for certificates that our own authority refuses to make."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from certs.authority import Authority

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
COORDINATOR = "secagg://lidc/coordinator/main"
ST_ANNA = "secagg://lidc/hospital/st-anna"
LAKESIDE = "secagg://lidc/hospital/lakeside"
EVALUATOR = "secagg://lidc/evaluator/public"

type_of_key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class Study:
    """Folders of one enrolled study."""

    authority: Authority
    ca: Path
    coordinator: Path
    st_anna: Path
    lakeside: Path
    evaluator: Path


@dataclass(frozen=True)
class Forged:
    """PEM texts of a leaf that no honest authority issues."""

    key: bytes
    certificate: bytes


def forge(
    authority: Authority,
    *,
    names: tuple[x509.GeneralName, ...] = (x509.UniformResourceIdentifier(ST_ANNA),),
    usage: tuple[ObjectIdentifier, ...] = (CLIENT,),
    key: type_of_key | None = None,
    ca: bool = False,
    start: datetime | None = None,
    days: int = 90,
    signer: ec.EllipticCurvePrivateKey | None = None,
) -> Forged:
    """A leaf with anything in it, signed by the study's root key, or by `signer` in its name."""
    own = key or ec.generate_private_key(ec.SECP256R1())
    begin = start or datetime.now(UTC) - timedelta(minutes=1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.certificate.subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(names)), critical=True)
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage(list(usage)), critical=True)
    certificate = builder.sign(signer or authority.key, hashes.SHA256())
    pem = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Forged(pem, certificate.public_bytes(Encoding.PEM))
