"""ComfyUI's page in Chromium for the tests, opened as tools/make_workflows.py opens it."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import loom_host_server as host

workflows = host.by_path("loom_make_workflows", host.PACK / "tools" / "make_workflows.py")


def launched(playwright, url: str, size: tuple[int, int] = (1900, 2000)):
    """(browser, page) with the app loaded; `page.problems` are its errors, with their stacks. Skips where there is no Chromium."""
    import pytest
    from playwright.sync_api import Error

    try:
        browser, page = workflows.open_page(playwright, url, size)
    except Error as error:
        if "Executable doesn't exist" in str(error) or "Failed to launch" in str(error):
            pytest.skip("needs Chromium: `python -m playwright install chromium`, or CHROMIUM=its program")
        raise
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(f"{error}\n{error.stack or ''}"))
    return browser, page


@contextmanager
def opened(url: str, size: tuple[int, int] = (1900, 2000)) -> Iterator:
    """The page of that server, as `launched` has it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser, page = launched(playwright, url, size)
        yield page
        browser.close()


def ours(page) -> list[str]:
    """Errors of the page in which we have a part: that of 0.3.64 has some of its own when it starts."""
    return [problem for problem in page.problems if "lora-loom" in problem]
