"""The coordinator: round engine, service, store. It handles flat vectors and sums, never a model.

`certs` is imported first because it sets the TLS floor, which grpc reads once while it is imported.
"""

import certs  # noqa: F401
