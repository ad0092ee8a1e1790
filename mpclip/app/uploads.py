"""Pictures that visitors send: which are read, and which are refused."""

from pathlib import Path

import PIL.Image

from modeling_mpclip.pictures import to_rgb
from mpclip.data.picture_size import pixel_limit

# Bounds of what a stranger may make the machine decode. A picture of a phone has 12 to 50 megapixels.
MAX_BYTES = 16 * 2**20
MAX_MEGAPIXELS = 64
# Formats of photographs and screenshots. Pillow reads dozens more, of which one starts another program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def read_upload(path: str | Path) -> PIL.Image.Image:
    """The picture in a file that a visitor sent, as RGB.

    One call at a time: `pixel_limit` sets a bound of the whole process.

    Args:
        path: of the file.

    Raises:
        ValueError: it is too large, or no picture of one of `FORMATS`. The message is for the visitor and names no path.
    """
    size = Path(path).stat().st_size
    if size > MAX_BYTES:
        raise ValueError(
            f"The picture has {size / 2**20:.1f} MB; at most {MAX_BYTES / 2**20:.0f} MB are read. Make it smaller."
        )
    try:
        with pixel_limit(MAX_MEGAPIXELS), PIL.Image.open(path, formats=FORMATS) as image:
            image.load()
            return to_rgb(image)
    except (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"The picture has more than {MAX_MEGAPIXELS} megapixels. Scale it down and send it again.") from error
    except Exception as error:  # Pillow's decoders raise a dozen types
        raise ValueError(f"The file is not a whole picture. Send one of these: {', '.join(FORMATS)}.") from error
