"""One thin Prefect task a stage: what it is cached by, when it is retried, which slot it holds, what the UI shows."""
