"""What the reports' pages have in common: their templates' settings, and pictures inside of them."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import jinja2
from PIL import Image


def template_environment(folder: Path) -> jinja2.Environment:
    """Jinja with the templates of a folder. A name that a template lacks is an error, and text is escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def picture_uri(picture: Image.Image) -> str:
    """A picture as a PNG that stands in the page itself."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return png_uri(buffer.getvalue())


def png_uri(content: bytes) -> str:
    """The bytes of a PNG as an address that holds them."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
