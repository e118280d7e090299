"""Readers: a folder or file of a known data set -> `mvp.data.Data`."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mvp.data import Data
from zoo.errors import DataError


def cifar100(root: str | Path, classes: Sequence[str] | None = None) -> Data:
    """CIFAR-100 (50,000 + 10,000 images of 32 px, 100 classes) from a folder, whichever layout it has.

    Args:
        root: Folder with Parquet files in the Hub's layout (`train-*.parquet`, `test-*.parquet`) or with torchvision's
            `cifar-100-python`.
        classes: Class names to take, in this order; all 100 when None.
    """
    root = Path(root)
    data = hub_parquet(root, dataset="cifar100", label="fine_label")
    return data if classes is None else data.subset(classes)


def hub_parquet(root: str | Path, *, dataset: str, image: str | None = None, label: str | None = None) -> Data:
    """Parquet files in the Hugging Face Hub's image layout: `{bytes, path}` structs beside an integer label column.

    Args:
        root: Folder with `train*.parquet` and `test*.parquet` (or `validation*`), shards in name order.
        dataset: Name recorded in the task.
        image: Image column; the first struct column with `bytes` when None.
        label: Label column; the first `ClassLabel` of the schema when None.

    Raises:
        DataError: No such files or columns, or images of several sizes.
    """
    import pyarrow.parquet as pq
    from PIL import Image

    root = Path(root)
    splits = {}
    names: list[str] = []
    for split, patterns in (("train", ("train*.parquet",)), ("test", ("test*.parquet", "validation*.parquet"))):
        files = next((found for p in patterns if (found := sorted(root.glob(p)))), [])
        if not files:
            raise DataError(f"{root}: no {split} files", expected=f"files named {' or '.join(patterns)}")
        images, labels = [], []
        for file in files:
            table = pq.read_table(file)
            features = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
            features = features.get("info", {}).get("features", {})
            image = image or next((c for c in table.column_names if "bytes" in str(table.schema.field(c).type)), None)
            label = label or next((c for c, f in features.items() if f.get("_type") == "ClassLabel"), None)
            if image not in table.column_names or label not in table.column_names:
                raise DataError(f"{file.name}: no image or label column", got=table.column_names)
            names = names or list(features.get(label, {}).get("names", []))
            for struct in table[image].to_pylist():
                images.append(np.asarray(Image.open(io.BytesIO(struct["bytes"])).convert("RGB")))
            labels.append(table[label].to_numpy())
        if len({a.shape for a in images}) != 1:
            raise DataError(f"{root}: images of several sizes", hint="Use mvp.data.image_folder(..., size=...).")
        splits[split] = (
            torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
            torch.from_numpy(np.concatenate(labels).astype(np.int64)),
        )
    if not names:
        names = [str(i) for i in range(int(splits["train"][1].max()) + 1)]
    return Data(dataset, tuple(names), *splits["train"], *splits["test"])
