"""One small study, enrolled once for all tests of certs."""

import pytest
from enrolled_study import COORDINATOR, EVALUATOR, LAKESIDE, ST_ANNA, Study

from certs.authority import create_authority, issue


@pytest.fixture(scope="session")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Study:
    base = tmp_path_factory.mktemp("enrolled")
    authority = create_authority(base / "ca", "lidc")
    folders = {}
    for uri in (COORDINATOR, ST_ANNA, LAKESIDE, EVALUATOR):
        folders[uri] = base / uri.rsplit("/", 1)[-1]
        issue(base / "ca", uri, folders[uri])
    return Study(authority, base / "ca", folders[COORDINATOR], folders[ST_ANNA], folders[LAKESIDE], folders[EVALUATOR])
