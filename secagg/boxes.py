"""Sealed boxes: one member's two shares for one other member, through a coordinator that must not read them.

AES-128-GCM under a key that seals exactly one box, hence a constant nonce. The plaintext repeats sender and receiver,
so that a box opens as what it is or not at all (README, step 2.6).
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from secagg.errors import RemoteError
from secagg.shamir import SHARE_BYTES, is_share

NONCE = bytes(12)  # the key is derived for one sender, receiver and session and seals nothing else
PLACE_BYTES = 4
PLAIN_BYTES = 2 * PLACE_BYTES + 2 * SHARE_BYTES
BOX_BYTES = PLAIN_BYTES + 16  # GCM tag


@dataclass(frozen=True, slots=True, repr=False)
class HeldShares:
    """What one member holds of another: a share of its self-mask seed and one of its mask key. Only one ever leaves.

    `noise`: shares of the secrets of components 1 ... d of its noise, of which at most one leaves.
    """

    seed: bytes
    mask_key: bytes
    noise: tuple[bytes, ...] = ()


def seal(key: bytes, context: bytes, sender: int, receiver: int, shares: HeldShares) -> bytes:
    """Ciphertext and tag; sender and receiver are places in the roster, which the context binds."""
    plain = b"".join([_header(sender, receiver), shares.seed, shares.mask_key, *shares.noise])
    return AESGCM(key).encrypt(NONCE, plain, context)


def unseal(
    key: bytes, context: bytes, sender: int, receiver: int, sealed: bytes, *, blame: str, noise_shares: int = 0
) -> HeldShares:
    """The shares; RemoteError (bad-box) naming `blame`, the sender who signed this box, where it is not what it should be."""
    try:
        plain = AESGCM(key).decrypt(NONCE, sealed, context)
    except InvalidTag as error:
        raise RemoteError(blame, "bad-box", f"the box from {blame} does not open") from error
    if len(plain) != PLAIN_BYTES + noise_shares * SHARE_BYTES or plain[: 2 * PLACE_BYTES] != _header(sender, receiver):
        raise RemoteError(blame, "bad-box", f"the box from {blame} names another sender or receiver")
    seed, mask_key, *noise = [plain[at : at + SHARE_BYTES] for at in range(2 * PLACE_BYTES, len(plain), SHARE_BYTES)]
    if not all(map(is_share, (seed, mask_key, *noise))):
        raise RemoteError(blame, "bad-box", f"the box from {blame} holds something that is no share")
    return HeldShares(seed, mask_key, tuple(noise))


def _header(sender: int, receiver: int) -> bytes:
    return sender.to_bytes(PLACE_BYTES, "big") + receiver.to_bytes(PLACE_BYTES, "big")
