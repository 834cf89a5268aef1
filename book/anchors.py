"""Anchors of headings as JupyterLab makes them, so that one link works in both."""


def slug(heading: str) -> str:
    return heading.replace(" ", "-")


def setup(app: object) -> dict[str, bool]:
    return {"parallel_read_safe": True}
