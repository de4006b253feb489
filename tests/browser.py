"""A real browser without a window, and the page of `infer/app.py` in a process of its own."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--window-size=1360,1330",
)
PATIENCE = 240  # seconds, of a busy machine


def what_is_missing() -> str:
    """Why there is no browser to test with; empty if there is."""
    packages = [n for n in ("gradio", "selenium") if importlib.util.find_spec(n) is None]
    programs = [n for n in ("chromium", "chromedriver") if shutil.which(n) is None]
    needed = [f"package {n} (requirements-app.txt)" for n in packages]
    needed += [f"program {n} (apt install chromium chromium-driver)" for n in programs]
    return f"needs the {', the '.join(needed)}" if needed else ""


@contextlib.contextmanager
def serve_page(*arguments: str, cwd: Path, root: Path = ROOT) -> Iterator[str]:
    """The address of a page that was started as a user does it."""
    command = [sys.executable, str(root / "infer" / "app.py"), *arguments]
    env = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    with socket.create_server(("127.0.0.1", 0)) as server:
        command += ["--port", str(server.getsockname()[1])]
    errors = cwd / "page.log"
    with errors.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=cwd, env=env)
    try:
        pattern = re.compile(r"the page is at (\S+)")
        address = wait_for(lambda: process.poll() is None and pattern.search(errors.read_text()))
        yield address[1]
    finally:
        process.terminate()
        process.wait(20)


def wait_for(find: Callable, seconds: float = PATIENCE):
    """What `find` returns once it is something; what it raises until then does not matter."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(Exception):
            if found := find():
                return found
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s")
        time.sleep(0.1)


class Browser:
    """Chromium with the page open.

    Args:
        downloads: the folder of what is downloaded.
    """

    def __init__(self, address: str, downloads: Path):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        self.address, self.downloads = address, downloads
        self.profile = tempfile.mkdtemp(prefix="chromium-")
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for flag in (*FLAGS, f"--user-data-dir={self.profile}"):
            options.add_argument(flag)
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        service = Service(shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options=options, service=service)
        self.driver.get(address)
        wait_for(lambda: self.find("#ask"))

    def close(self) -> None:
        self.driver.quit()
        shutil.rmtree(self.profile, ignore_errors=True)

    def find(self, selector: str):
        return self.driver.find_element("css selector", selector)

    def shows(self, selector: str) -> bool:
        found = self.driver.find_elements("css selector", selector)
        return any(each.is_displayed() for each in found)

    def upload(self, path: Path) -> None:
        wait_for(lambda: self.find("#picture input[type=file]")).send_keys(str(path))

    def open_picture(self, path: Path) -> None:
        self.upload(path)
        wait_for(lambda: self.find("#picture img").size["width"] > 50)
        time.sleep(1)  # until the page has it

    def open_example(self) -> None:
        self.find("#example").click()
        wait_for(lambda: self.find("#picture img").size["width"] > 50)

    def choose(self, task: str) -> None:
        labels = self.driver.find_elements("css selector", "#task label")
        next(each for each in labels if each.text.strip() == task).click()

    def ask(self) -> str:
        """The text of a new answer."""
        before = self.text()
        self.find("#ask").click()
        return self.changed(before)

    def text(self) -> str:
        return self.driver.execute_script(
            "return document.querySelector('#result-text .md')?.innerText || ''"
        )

    def changed(self, before: str) -> str:
        def finished() -> str:
            text = self.text()
            return text if text != before and " s for " in text and "processing" not in text else ""

        return wait_for(finished)

    def click_at(self, x: float, y: float) -> None:
        """A click on the picture, at shares of its sides; until the page has drawn it."""
        from selenium.webdriver.common.action_chains import ActionChains

        image = self.find("#picture img")
        source, size = image.get_attribute("src"), image.size
        offset = int((x - 0.5) * size["width"]), int((y - 0.5) * size["height"])
        ActionChains(self.driver).move_to_element_with_offset(image, *offset).click().perform()
        wait_for(lambda: self.find("#picture img").get_attribute("src") != source)
        time.sleep(0.5)

    def set_threshold(self, value: float) -> str:
        """The text of the answer afterwards."""
        before = self.text()
        field = self.find("#threshold input[type=number]")
        script = (
            "arguments[0].value = arguments[1];"
            "arguments[0].dispatchEvent(new Event('input', {bubbles: true}));"
            "arguments[0].dispatchEvent(new Event('change', {bubbles: true}));"
            "arguments[0].dispatchEvent(new Event('blur', {bubbles: true}));"
        )
        self.driver.execute_script(script, field, str(value))
        return self.changed(before)

    def message(self) -> str:
        """The text of a message that appears."""
        return wait_for(lambda: self.find(".toast-body").text)

    def close_message(self) -> None:
        """In the page itself: a message is drawn anew while it moves."""
        script = (
            "document.querySelectorAll('.toast-close').forEach(each => each.click());"
            "return !document.querySelector('.toast-body');"
        )
        wait_for(lambda: self.driver.execute_script(script))

    def clear_picture(self) -> None:
        """The cross at the picture: its last button above it."""
        buttons = self.driver.find_elements("css selector", "#picture button[aria-label]")
        labels = [each.get_attribute("aria-label") for each in buttons]
        next(
            each
            for each, label in zip(buttons, labels, strict=True)
            if label in ("Clear", "Remove Image")
        ).click()
        wait_for(lambda: self.find("#picture input[type=file]"))

    def download(self, button: str) -> Path:
        known = set(self.downloads.iterdir())
        self.find(button).click()

        def finished() -> list[Path]:
            new = set(self.downloads.iterdir()) - known
            unfinished = [p for p in new if p.suffix == ".crdownload" or p.name.startswith(".")]
            return [] if unfinished else sorted(new)

        return wait_for(finished)[0]

    def addresses(self) -> set[str]:
        """Scheme and host of all that the page asked for, beside the browser's own pages."""
        found = set()
        for row in self.driver.get_log("performance"):
            message = json.loads(row["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                found.add("/".join(url.split("/")[:3]))
        return {url for url in found if not url.startswith(("data:", "blob:", "chrome:"))}
