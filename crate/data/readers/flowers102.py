"""Oxford Flowers-102 as torchvision unpacks it (Nilsback & Zisserman 2008)."""

import io
from pathlib import Path

import numpy as np

from crate.data.datasets import ImageSet
from crate.data.files import Unusable, read_file, require_files, to_bytes
from crate.data.pictures import FilePictures, Pictures
from crate.environment import import_torchvision

FOLDER = "flowers-102"
LISTS = {"train": "trnid", "val": "valid", "test": "tstid"}  # part → its list in setid.mat


def read(dataset: ImageSet, root: Path, part: str) -> Pictures:
    """Pictures are numbered from 1; setid.mat lists those of a part, imagelabels.mat all labels."""
    folder = root / FOLDER
    ids, labels = (
        _array(folder / "setid.mat", LISTS[part]),
        _array(folder / "imagelabels.mat", "labels"),
    )
    if len(ids) and not 1 <= ids.min() <= ids.max() <= len(labels):
        raise Unusable(
            f"{folder / 'setid.mat'}: names picture {ids.max()}, imagelabels.mat labels "
            f"{len(labels):,}"
        )
    files = [f"image_{number:05d}.jpg" for number in ids.tolist()]
    require_files(folder / "jpg", files, folder / "setid.mat")
    return FilePictures(folder / "jpg", to_bytes(files), labels[ids - 1] - 1)


def _array(path: Path, key: str) -> np.ndarray:
    """One array of a MATLAB file, as int64 (N,)."""
    from scipy.io import loadmat

    content = io.BytesIO(read_file(path))
    try:
        return loadmat(content, variable_names=[key])[key].ravel().astype(np.int64)
    except Exception:  # a damaged file makes scipy raise nearly anything
        raise Unusable(f"{path}: is damaged, or not a MATLAB file with '{key}'") from None


def downloads() -> list[tuple[str, str, str | None]]:
    """The published archive and lists."""
    import_torchvision()
    from torchvision.datasets import Flowers102

    prefix, files = Flowers102._download_url_prefix, Flowers102._file_dict.values()
    return [(prefix + file, FOLDER, md5) for file, md5 in files]


def checksums() -> dict[str, str]:
    """The md5 of the lists."""
    import_torchvision()
    from torchvision.datasets import Flowers102

    files = [Flowers102._file_dict[key] for key in ("label", "setid")]
    return {f"{FOLDER}/{file}": md5 for file, md5 in files}
