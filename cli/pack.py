"""`python -m cli.pack FILE.pyz`: the offline verifier as one file that any Python 3.11 with `cryptography` runs."""

import sys
import zipfile
from pathlib import Path

SOURCE = Path(__file__).with_name("verifier.py")
MOMENT = (1980, 1, 1, 0, 0, 0)  # the zip format's first: the same source gives the same bytes


def pack(target: Path) -> None:
    """Write the zipapp."""
    with target.open("wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(zipfile.ZipInfo("__main__.py", MOMENT), SOURCE.read_bytes(), zipfile.ZIP_DEFLATED)
    target.chmod(0o755)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m cli.pack FILE.pyz")
    pack(Path(sys.argv[1]))
