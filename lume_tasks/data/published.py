"""Recognise the published LUME by the documents that were scored, whatever the format and the order of their files."""

import hashlib
import json
from collections.abc import Iterable, Sequence

DIGEST = "documents_sha256"  # the metadata of a task in the harness's results holds the digest under this name

MIA = "683839ad2bce2661b3c719614dafa2921994e2af4f638c49f55c1e222fb7af94"
SPLITS = {
    "52fe14f7abf6d8f340f35819e3455777382f9e116424b0857b8eed846f212f3a": "all",  # Task 1
    "512384853f6b8395d47c3f1d1f9029e62967660e50741d0ab07641bc30d37fc4": "all",  # Task 2
    "dd278b200dbf1f15f62d9fd9c880d49d847bf6b4da4d1ae009a1df95aa08d814": "all",  # Task 3
    "1d66261d1ecc012a033c7609a3a28166d05c99f8599965a9c53c1ae2fbe33458": "train",  # Task 1
    "8e420fb8dda642e9ef2e2fe3be9e7c1064e88152169c4532f800763d074d7e0c": "train",  # Task 2
    "192c321fbeb9c21b9df62e5a37b9e44bf3f71bb2841621e1fe9b8f4b49acf635": "train",  # Task 3
    "88edae6237087792f6f71b9fd7179119f6e56e284457da9364171bcc0797dfd0": "validation",  # Task 1
    "162cdc4ea5c93c363ba16bfb3a8f19315c186350e44fe4bb0c5f51e7b9101f10": "validation",  # Task 2
    "710a884843614e7be9b024fde977a4b31aade8e2249ddae73895969abd58c290": "validation",  # Task 3
    "024713541ff21e082183ab089043e1f83bcc22530d82d2f9e323e004de961bc6": "test",  # Task 1
    "4f543053d0c9d5d0488e4a9cc42c489bf2913c42004618c660d335b20a750826": "test",  # Task 2
    "c26a20f58ce0d699895c716fa854797cba7427e6336a1b8f7a8cae3494a4fd9a": "test",  # Task 3
}
"""Digest of one task's rows (both sides) to their split. ``MIA`` is the digest of the membership documents."""


def documents_digest(documents: Iterable[Sequence[object]]) -> str:
    """Return the SHA-256 (hexadecimal) of the sorted documents, each as a JSON list.

    Args:
        documents: ``[side, id, input, output]`` of a row, ``[member?, text]`` of a membership-inference document.
    """
    return hashlib.sha256("\n".join(sorted(map(json.dumps, documents))).encode()).hexdigest()
