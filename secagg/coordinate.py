"""The coordinator's side of the protocol in one import: `view` up to the last reveal, `opening` for the sum."""

from secagg.opening import OpenedSum, open_sum
from secagg.view import (
    SessionView,
    add_upload,
    verify_advert,
    verify_confirmation,
    verify_revealed,
    verify_share_set,
    verify_upload_seal,
)

__all__ = [
    "OpenedSum",
    "SessionView",
    "add_upload",
    "open_sum",
    "verify_advert",
    "verify_confirmation",
    "verify_revealed",
    "verify_share_set",
    "verify_upload_seal",
]
