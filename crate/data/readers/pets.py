"""Oxford-IIIT Pets as torchvision unpacks it (Parkhi et al. 2012)."""

from pathlib import Path

import numpy as np

from crate.data.datasets import ImageSet
from crate.data.files import Unusable, read_text, require_files, shortened, to_bytes
from crate.data.pictures import FilePictures, Pictures
from crate.environment import import_torchvision

FOLDER = "oxford-iiit-pet"


def read(dataset: ImageSet, root: Path, part: str) -> Pictures:
    """The list of a part has a line a picture: name, breed (1 to 37), cat or dog, its breed."""
    folder = root / FOLDER
    path = folder / "annotations" / f"{part}.txt"
    files, labels = [], []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        try:
            name, breed, _, _ = line.split()
            labels.append(int(breed) - 1)
        except ValueError:
            raise Unusable(f"{path}, line {number}: is not 'name breed species breed'") from None
        if not 0 < int(breed) <= dataset.classes:
            raise Unusable(
                f"{path}, line {number}: the breed is {shortened(breed)}, those of {dataset.title} "
                f"are 1 to {dataset.classes}"
            )
        files.append(f"{name}.jpg")
    require_files(folder / "images", files, path)
    return FilePictures(folder / "images", to_bytes(files), np.array(labels, dtype=np.int64))


def downloads() -> list[tuple[str, str, str | None]]:
    """The published archives; only their md5 is known, not that of the files in them."""
    import_torchvision()
    from torchvision.datasets import OxfordIIITPet

    return [(url, FOLDER, md5) for url, md5 in OxfordIIITPet._RESOURCES]
