"""A hospital's node: everything that touches patients, and the only package that may. Importing it loads nothing heavy.

`certs` is imported here because it sets the TLS floor, which grpc reads once, when it is first imported.
"""

import certs as certs  # for its effect
