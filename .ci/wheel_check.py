"""The built wheel holds both packages, their type markers and the package data; and `mvp demo`'s inputs are readable from
it alone: it is unpacked outside the repository and the sample zoo is queried from there."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

wheel = Path(sys.argv[1])
with tempfile.TemporaryDirectory() as folder:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    code = (
        "import zoo, mvp, pathlib; z = zoo.sample(); print(z); "
        "assert pathlib.Path(zoo.__file__).is_relative_to(pathlib.Path.cwd()), zoo.__file__; "
        "print(z.nearest(['cat', 'dog', 'horse', 'sheep', 'goat'], k=3)); print(len(z.get(z.ids()[0]).weights), 'tensors')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    missing = [f for f in ("zoo/py.typed", "mvp/py.typed", "zoo/_data/SHA256SUMS") if not (Path(folder) / f).is_file()]
    if missing:
        sys.exit(f"{wheel.name} lacks {', '.join(missing)}")
