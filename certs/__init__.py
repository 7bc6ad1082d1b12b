"""Who a party is: development CA, identities, peer lists, TLS credentials.

Importing this package sets the TLS floor, because grpc reads its cipher list once, while it is imported, and never again.
Packages that use grpc import `certs` in their `__init__`, which runs before any of their modules can import grpc.
"""

import os
import sys

# TLS 1.2 stays switched on in grpcio and no option turns it off. This is the one 1.2 suite left, it needs an RSA leaf, and our
# leaves are P-256: a 1.2 handshake finds no common suite and ends. TLS 1.3 suites are not affected (README, Decisions).
CIPHER_VARIABLE = "GRPC_SSL_CIPHER_SUITES"
CIPHER_SUITES = "ECDHE-RSA-AES128-GCM-SHA256"

TLS_FLOOR_SET = "grpc" not in sys.modules or os.environ.get(CIPHER_VARIABLE) == CIPHER_SUITES
os.environ[CIPHER_VARIABLE] = CIPHER_SUITES
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own lines come before our sentence for the same fault and name no remedy
