"""Files that once ended in a traceback or a command that never came back: each is one clear line."""

import gzip
import re
from pathlib import Path

import pytest

from interchange.files.hdf5 import read_hdf5
from interchange.files.reader import DamagedFileError

# Name of a file of ``found``, packed there -> what is said of it, and what happened before.
FOUND = {
    "attribute_in_evaluation": "not printable",  # the name of an attribute in bytes was a TypeError
    "attribute_in_teacher": "not printable",
    "hangs_in_evaluation": "takes more than 4 s",  # HDF5 1.14.6 never ends on these
    "hangs_in_trajectories": "takes more than 4 s",
}


@pytest.mark.slow_with(name=[name for name in FOUND if name.startswith("hangs")])
@pytest.mark.parametrize("name", FOUND)
def test_a_file_that_was_found_is_one_clear_line(name, tmp_path):
    packed = Path(__file__).with_name("found") / f"{name}.h5.gz"
    path = tmp_path / f"{name}.h5"
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    with pytest.raises(DamagedFileError, match=re.escape(FOUND[name])) as error:
        read_hdf5(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
