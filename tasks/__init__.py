"""One thin Prefect task a stage: what it is cached by, when it is retried, which slot it holds, what the UI shows."""

import logging

logging.getLogger("customdiff_core").setLevel(logging.INFO)  # what the core says, a run's log shows
