"""The process that img2dataset runs in; it ends with the one that started it, and takes its own processes along.

python -m customdiff_core.retrieval.img2dataset_process '{"url_list": ...}'
"""

import json
import os
import signal
import sys
import threading
import time

WATCH_SECONDS = 1.0


def end_with(parent: int) -> None:
    """Kill this process group once its parent is gone: a killed run must not leave downloads behind."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os.killpg(os.getpgid(0), signal.SIGKILL)


def main() -> None:
    """Download as the options on the command line say."""
    from img2dataset import download

    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    download(**json.loads(sys.argv[1]))


if __name__ == "__main__":
    main()
