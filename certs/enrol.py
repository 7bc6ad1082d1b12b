"""Enrolment over two machines: request, approve, install. The private key never moves, and both sides compare words.

(1) The hospital makes its key and a request (`create_request`). (2) The coordinator's people hear the key's words and sign the
request (`sign_request`), which copies the public key and nothing else. (3) The hospital hears the root's words and installs
what came back (`install`). Neither (2) nor (3) can be done without the words. Where a hospital's own CA signs the request, (2)
is `admit_issuer`: the coordinator then accepts that CA's signatures in handshakes; membership stays with the key lists.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from certs import files
from certs.authority import LEAF_DAYS, Leaf, key_usage, load_authority, private_pem, record, sign_leaf
from certs.identity import (
    CALLERS_FILE,
    CERTIFICATE_FILE,
    ISSUER_FILE,
    KEY_FILE,
    KEY_ORIGIN,
    ROOT_FILE,
    Identity,
    check_issued,
    key_fingerprint,
    load_identity,
    load_private_key,
)
from certs.party import (
    MALFORMED,
    PURPOSE_OID,
    CertificateError,
    Party,
    PartyName,
    Purpose,
    certified_key_der,
    check_dates,
    fingerprint_of,
    is_ca,
    leaf_key,
    parse_certificate,
    parse_certificates,
    party_of_certificate,
    uri_of,
)
from certs.words import compare_words

REQUEST_FILE = "node.csr"
REQUESTED = "its party makes it with secagg-node request and sends it; name it as you kept it"
SIGNED = "the coordinator makes it with secagg-certs approve and sends it; name it as you kept it"


def create_request(folder: Path, uri: str) -> bytes:
    """Make a key on the party's own machine and ask for a certificate: node.key (0600, stays there) and node.csr.

    Returns the SHA-256 of the key, whose words the authority's people ask for.
    """
    name = PartyName.parse(uri)
    files.make_folder(folder)
    files.refuse_existing(folder, KEY_FILE, REQUEST_FILE)
    key = ec.generate_private_key(ec.SECP256R1())
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name.name)]))  # some CAs refuse an empty one
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)  # for a CA that copies extensions;
        .add_extension(key_usage(ca=False), critical=True)  # ours sets its own
        .add_extension(x509.ExtendedKeyUsage([PURPOSE_OID[name.purpose]]), critical=True)
        .sign(key, hashes.SHA256())
    )
    files.write_new(folder / KEY_FILE, private_pem(key), files.PRIVATE)
    files.write_new(folder / REQUEST_FILE, request.public_bytes(Encoding.PEM), files.PUBLIC)
    return key_fingerprint(key)


def read_request(pem: bytes, source: str) -> Leaf:
    """What a request asks for: a name and a P-256 key that its sender holds. Everything else in it is ignored."""
    try:
        request = x509.load_pem_x509_csr(pem)
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except MALFORMED as error:
        raise CertificateError(
            f"{source} is not a certificate request with a party's URI: make one with secagg-node request"
        ) from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise CertificateError(f"{source} asks for {len(uris)} names, expected one party")
    key = leaf_key(request.public_key, source)
    try:
        proved = request.is_signature_valid
    except MALFORMED:
        proved = False
    if not proved:
        raise CertificateError(f"{source} is not signed by the key that it names: ask for the file again")
    return Leaf(uris[0], key)


def sign_request(
    authority_folder: Path, request: Path, out: Path, spoken_words: str, *, days: int = LEAF_DAYS, now: datetime | None = None
) -> Leaf:
    """Sign the request of a hospital or evaluator whose key words were compared; writes certificate and root to `out`.

    `spoken_words` are those that its people read from their own screen; the request is refused if they differ.
    """
    authority = load_authority(authority_folder)
    at = now or datetime.now(UTC)
    asked = read_request(files.read_bytes(request, "the request", REQUESTED), str(request))
    if PartyName.parse(asked.uri).purpose is not Purpose.CLIENT:
        raise CertificateError(
            f"{asked.uri} is a coordinator: make its key and certificate on its own machine with secagg-certs issue"
        )
    compare_words(spoken_words, asked.fingerprint, asked.uri)
    leaf = Leaf(asked.uri, asked.public_key, days=days)
    pem = sign_leaf(authority, leaf, at)
    files.refuse_existing(out.parent, out.name)
    record(authority_folder, leaf, pem, at, words_compared=True)
    files.write_new(out, pem + authority.certificate_pem, files.PUBLIC)
    return leaf


def install(
    folder: Path,
    signed: Path,
    spoken_root_words: str,
    now: datetime | None = None,
    *,
    root: Path | None = None,
    issuer: Path | None = None,
) -> Identity:
    """Put a signed certificate beside its key, after comparing the root's words. An older one of the same key is replaced.

    `signed` holds leaf and root, as the coordinator sends them. Where the hospital's own CA signed, it holds the leaf, `root`
    the study's root (its words are those compared) and `issuer` that CA with whatever is between it and the leaf.
    """
    at = now or datetime.now(UTC)
    leaf, root_certificate = _leaf_and_root(signed, root)
    compare_words(spoken_root_words, fingerprint_of(certified_key_der(root_certificate, "the root")), "the root")
    root_pem, source = root_certificate.public_bytes(Encoding.PEM), str(signed)
    issuer_pem = b"" if issuer is None else _issuers(issuer, at)
    check_issued(leaf, issuer_pem or root_pem, at, source)
    party = party_of_certificate(leaf, at, source)
    key = load_private_key(files.read_private(folder / KEY_FILE, "the private key", KEY_ORIGIN), str(folder / KEY_FILE))
    if key_fingerprint(key) != party.fingerprint:
        raise CertificateError(
            f"{signed} was made for another key than {folder / KEY_FILE}: install it where its request was made"
        )
    _check_same_name(folder, party.uri)
    files.replace(folder / ROOT_FILE, root_pem, files.PUBLIC)
    if issuer_pem:
        files.replace(folder / ISSUER_FILE, issuer_pem, files.PUBLIC)
    files.replace(folder / CERTIFICATE_FILE, leaf.public_bytes(Encoding.PEM), files.PUBLIC)
    return load_identity(folder, at)


def admit_issuer(identity: Path, certificate: Path, issuer: Path, spoken_words: str, now: datetime | None = None) -> Party:
    """Let a coordinator accept handshakes with leaves of a hospital's own CA, after comparing the words of one such leaf's key.

    The CA's certificates are added to callers.crt beside the coordinator's key. A CA that mints impostors gets no further than
    the handshake: whoever calls is compared with the list of confirmed keys.
    """
    at = now or datetime.now(UTC)
    source = str(certificate)
    leaf = parse_certificate(files.read_bytes(certificate, "the certificate", SIGNED), source)
    party = party_of_certificate(leaf, at, source)
    if party.name.purpose is not Purpose.CLIENT or party.name.study != load_identity(identity, at).name.study:
        raise CertificateError(f"{source} names {party.uri}, which is no hospital or evaluator of this coordinator's study")
    compare_words(spoken_words, party.fingerprint, party.uri)
    pem = _issuers(issuer, at)
    check_issued(leaf, pem, at, str(issuer))
    path = identity / CALLERS_FILE
    present = files.read_bytes(path, "the issuers of callers", "make it again") if path.exists() else b""
    if pem not in present:
        files.replace(path, present + pem, files.PUBLIC)
    return party


def _leaf_and_root(signed: Path, root: Path | None) -> tuple[x509.Certificate, x509.Certificate]:
    certificates = parse_certificates(files.read_bytes(signed, "the signed certificate", SIGNED), str(signed))
    if root is not None:
        pem = files.read_bytes(root, "the study's root", "the coordinator sends it as ca.crt")
        return certificates[0], parse_certificate(pem, str(root))
    if len(certificates) != 2:
        raise CertificateError(
            f"{signed} holds {len(certificates)} certificates, expected yours and the root: ask for the file again"
        )
    return certificates[0], certificates[1]


def _issuers(path: Path, at: datetime) -> bytes:
    """The certificates of a CA (PEM), each of which may sign and is valid at `at`."""
    found = parse_certificates(files.read_bytes(path, "the CA's certificates", "ask your PKI for its chain"), str(path))
    for certificate in found:
        if not is_ca(certificate, str(path)):
            raise CertificateError(f"{path} holds a certificate that is no CA: name the file with the CA's chain alone")
        check_dates(certificate, at, f"the CA's certificate in {path}")
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in found)


def _check_same_name(folder: Path, uri: str) -> None:
    path = folder / CERTIFICATE_FILE
    if (
        path.exists()
        and uri_of(parse_certificate(files.read_bytes(path, "the certificate", SIGNED), str(path)), str(path)) != uri
    ):
        raise CertificateError(f"{folder} belongs to another party than {uri}: give every party its own folder")
