"""Data sets from strangers: small files that unpack to more than the memory holds."""

import io
import json
import tarfile
import zlib

import pytest
from tiny_pictures import jpeg, picture

from mpclip.data.forms.tars import files_by_name
from mpclip.data.image_text import load_image_text

pytestmark = pytest.mark.usefixtures("datasets_cache")


def sparse_tar(path, size: int) -> None:
    """A picture, and a caption of which the tar says that it is `size` zeros."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("0.jpg")
        info.size = len(jpeg(0))
        tar.addfile(info, io.BytesIO(jpeg(0)))
        hole = tarfile.TarInfo("0.txt")
        hole.pax_headers = {"GNU.sparse.map": f"0,0,{size},0", "GNU.sparse.size": str(size), "GNU.sparse.name": "0.txt"}
        tar.addfile(hole)


def compressed_tar(path, size: int) -> None:
    """A picture, and a caption of `size` spaces, of which a thousandth is written."""
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        info = tarfile.TarInfo("0.jpg")
        info.size = len(jpeg(0))
        tar.addfile(info, io.BytesIO(jpeg(0)))
        info = tarfile.TarInfo("0.txt")
        info.size = size
        tar.addfile(info, io.BytesIO(b" " * size))


@pytest.mark.parametrize("make, size", [(sparse_tar, 10**12), (sparse_tar, 10), (compressed_tar, 3 * 2**20)])
def test_a_tar_member_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch, make, size):
    monkeypatch.setattr("mpclip.data.forms.tars.LARGEST_MEMBER", 2**20)
    tar = tmp_path / ("0.tar.gz" if make is compressed_tar else "0.tar")
    make(tar, size)
    for read in (lambda: load_image_text(tar, "train"), lambda: list(files_by_name(tar))):
        with pytest.raises(ValueError, match=r"refused the member '0\.txt', which has [\d,]+ MB, more than any picture"):
            read()


def test_a_picture_whose_texts_unpack_to_more_than_allowed_is_named(tmp_path):
    for i in range(2):
        picture(i).save(tmp_path / f"{i}.png")
    bomb = b"zTXt" + b"Comment\0\0" + zlib.compress(b" " * 2**27)
    chunk = (len(bomb) - 4).to_bytes(4, "big") + bomb + zlib.crc32(bomb).to_bytes(4, "big")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[:33] + chunk + whole[33:])  # behind the header
    lines = [json.dumps({"file_name": f"{i}.png", "caption": "a"}) for i in range(2)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.warns(UserWarning, match=r"1 of 2 rows .*1\.png \(.*[Dd]ecompressed"):
        assert len(load_image_text(tmp_path, "train")) == 1
