"""Coverage-guided fuzzing of one decoder, by hand: `python tests/fuzz/with_atheris.py plan -max_total_time=600`.

Needs the extra `fuzz` (atheris). Inputs that reach new code are written to the folder named by SECAGG_FUZZ_FOUND (default: a
new one); a finding ends the run and is written by libFuzzer. What is worth keeping is copied into corpus/<name>/.
"""

import os
import sys
import tempfile

import atheris

with atheris.instrument_imports(include=["proto", "certs", "coordinator", "hospital_node", "secagg"]):
    from decoders import CORPUS, feed


def main() -> None:
    name, *options = sys.argv[1:]
    found = os.environ.get("SECAGG_FUZZ_FOUND") or tempfile.mkdtemp(prefix=f"fuzz-{name}-")
    atheris.Setup([sys.argv[0], *options, found, str(CORPUS / name)], lambda data: feed(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
