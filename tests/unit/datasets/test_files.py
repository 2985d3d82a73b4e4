"""What a client may declare as files of a version."""

import pytest

from services.datasets.forms import FileForm
from services.datasets.service import check_files
from services.errors import InvalidInput

GOOD = "a" * 64


@pytest.mark.parametrize("path", ["../etc/passwd", "/abs", "a//b", "a/../b", "", ".hidden", "a b", "a\\b", "x" * 101, "a/b/c/d/e/f"])
def test_a_path_that_could_leave_its_folder_is_refused(path: str) -> None:
    with pytest.raises(InvalidInput):
        check_files([FileForm(path, 1, GOOD)])


@pytest.mark.parametrize(("size", "sha256"), [(-1, GOOD), (1, "A" * 64), (1, "a" * 63), (1, "sha256:" + GOOD)])
def test_a_file_needs_its_size_and_its_digest_in_hex(size: int, sha256: str) -> None:
    with pytest.raises(InvalidInput):
        check_files([FileForm("a.parquet", size, sha256)])


def test_files_have_distinct_paths_and_there_is_at_least_one() -> None:
    check_files([FileForm("a.parquet", 0, GOOD), FileForm("part/b-1.parquet", 1, GOOD)])
    for files in ([], [FileForm("a", 1, GOOD), FileForm("a", 2, GOOD)]):
        with pytest.raises(InvalidInput):
            check_files(files)
