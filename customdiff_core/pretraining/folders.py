"""Model folders as other libraries write them, made the same wherever they are made."""

import json
from pathlib import Path


def forget_paths(folder: Path) -> None:
    """Take out of the configurations where the parts were loaded from: it is nobody's business and changes the digest."""
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text())
        if isinstance(content, dict) and "_name_or_path" in content:
            path.write_text(
                json.dumps({key: value for key, value in content.items() if key != "_name_or_path"}, indent=2) + "\n"
            )
