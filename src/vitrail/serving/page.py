"""The page at `/`: its files, as they are served; nothing in them comes from elsewhere."""

from importlib.resources import files as resources

_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def files() -> dict[str, tuple[str, bytes]]:
    """Give each file of the page by its path: what it is, and its bytes."""
    own = resources("vitrail.serving") / "web"
    found = {"/page/report.css": resources("vitrail.reporting") / "page.css"}
    found |= {f"/page/{file.name}": file for file in own.iterdir() if file.name != "index.html"}
    found["/"] = own / "index.html"
    return {
        path: (_KINDS["." + file.name.rpartition(".")[2]], file.read_bytes())
        for path, file in found.items()
    }
