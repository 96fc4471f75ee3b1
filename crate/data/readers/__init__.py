"""Readers: how the files of a real set become pictures; one module a form, no list of them.

May import the ground and crate.data (not what opens them: sources, images, check, prepare).

`ImageSet.reader` of a catalogue entry (its `scenes`, its `labels`, or its form "class_folders") is
the name of a module here. A reader has

    read(dataset, root, part)   the pictures of one part: `Pictures`, or `Scenes` where they have
                                maps or objects; `root` is the set's folder, `part` a value of
                                `dataset.folders` (of an embedded set, the split)

and, for `crate data prepare` and `crate data check`, where they apply

    ARCHIVES       archive that a person downloads → file or folder that is taken out of it
    downloads()    (address, folder below the set's, md5 or None) of each file to download
    checksums()    file below the set's folder → published md5
"""

import importlib
import pkgutil
from types import ModuleType

from crate.errors import unknown


def reader(name: str) -> ModuleType:
    """The module `crate.data.readers.<name>`. Raises `UsageError` with the nearest name."""
    known = [module.name for module in pkgutil.iter_modules(__path__)]
    if name not in known:
        raise unknown("reader", name, known, where="crate/data/readers")
    return importlib.import_module(f"crate.data.readers.{name}")
