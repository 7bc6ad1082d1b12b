"""The app's page as a test sees it: the real script in Streamlit's own harness, reading a world on disk."""

import sys
from collections.abc import Callable, Sequence

import pytest
from streamlit.testing.v1 import AppTest

from ui import cli

PATIENCE_S = 180  # the first epsilon of a process imports its accountant
Open = Callable[..., AppTest]


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> Open:
    def run(arguments: Sequence[str], page: str = "overview", **query: str) -> AppTest:
        monkeypatch.setattr(sys, "argv", ["app.py", *arguments])
        app = AppTest.from_file(str(cli.APP), default_timeout=PATIENCE_S)
        for name, value in query.items():
            app.query_params[name] = value
        app.run()
        if page != "overview":
            app.switch_page(f"app_pages/{page}.py").run()
        assert not app.exception, [found.value for found in app.exception]
        return app

    return run
