"""What pyproject.toml cannot say: README in the wheel, where links to files of the checkout would lead nowhere."""

import re
from pathlib import Path

from setuptools import setup


def description() -> str:
    """README without its images, and with the text alone of each link into the checkout."""
    text = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n*", "", text)
    return re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)


setup(long_description=description(), long_description_content_type="text/markdown")
